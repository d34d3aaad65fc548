//! Where values come from, in order: flags, `FIRKIN_*` variables, the TOML file.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

/// The raw values of all sources, by key (`data-dir`).
#[derive(Debug, Default)]
pub struct Sources {
    flags: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
    file: Option<(PathBuf, BTreeMap<String, String>)>,
}

/// The place a value came from, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Flag(String),
    Variable(String),
    File(PathBuf),
}

/// Why the configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that does not fit its key.
    #[error("{key} = {value:?} (from {place}) is not {wanted}")]
    Value {
        /// The key.
        key: String,
        /// What was found.
        value: String,
        /// Where.
        place: String,
        /// What was wanted.
        wanted: String,
    },
    /// A key that does not exist.
    #[error("{path}: there is no key {key:?}; known keys: {known}")]
    UnknownKey {
        /// The file.
        path: String,
        /// What was found.
        key: String,
        /// What there is.
        known: String,
    },
    /// A file that cannot be read or is not TOML.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
}

// === impl Sources ===

impl Sources {
    /// Takes flags by key and the environment by variable name; empty variables count as unset.
    pub fn new(
        flags: impl IntoIterator<Item = (String, String)>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let environment = environment
            .into_iter()
            .filter_map(|(name, value)| {
                let key = name.strip_prefix("FIRKIN_")?.to_ascii_lowercase().replace('_', "-");
                (!value.is_empty()).then_some((key, value))
            })
            .collect();
        Self { flags: flags.into_iter().collect(), environment, file: None }
    }

    /// Adds the text of a TOML file.
    pub fn with_file(mut self, path: PathBuf, text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::File {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        let values = table
            .into_iter()
            .map(|(key, value)| match value {
                toml::Value::String(text) => (key, text),
                other => (key, other.to_string()),
            })
            .collect();
        self.file = Some((path, values));
        Ok(self)
    }

    /// Refuses keys of the file that nothing reads; variables and flags may be others' business.
    pub fn check_keys(&self, known: &[(&str, &str)]) -> Result<(), ConfigError> {
        let Some((path, values)) = &self.file else { return Ok(()) };
        match values.keys().find(|key| !known.iter().any(|(name, _)| name == key)) {
            None => Ok(()),
            Some(key) => Err(ConfigError::UnknownKey {
                path: path.display().to_string(),
                key: key.clone(),
                known: known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The value of a key by its type's own parser; `wanted` completes "is not ...".
    pub fn value<T: FromStr>(&self, key: &str, wanted: &str) -> Result<Option<T>, ConfigError> {
        self.parsed(key, |text| text.parse().map_err(|_| wanted))
    }

    /// The value of a key by a parser that says what it wanted.
    pub fn checked<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Result<Option<T>, ConfigError> {
        self.parsed(key, parse)
    }

    fn parsed<'w, T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, &'w str>,
    ) -> Result<Option<T>, ConfigError> {
        let Some((text, place)) = self.find(key) else { return Ok(None) };
        parse(text).map(Some).map_err(|wanted| ConfigError::Value {
            key: key.to_owned(),
            value: text.to_owned(),
            place: place.to_string(),
            wanted: wanted.to_owned(),
        })
    }

    fn find(&self, key: &str) -> Option<(&str, Place)> {
        if let Some(text) = self.flags.get(key) {
            return Some((text, Place::Flag(key.to_owned())));
        }
        if let Some(text) = self.environment.get(key) {
            let name = format!("FIRKIN_{}", key.to_ascii_uppercase().replace('-', "_"));
            return Some((text, Place::Variable(name)));
        }
        let (path, values) = self.file.as_ref()?;
        values.get(key).map(|text| (text.as_str(), Place::File(path.clone())))
    }
}

// === impl Place ===

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(key) => write!(formatter, "--{key}"),
            Self::Variable(name) => write!(formatter, "environment variable {name}"),
            Self::File(path) => write!(formatter, "file {}", path.display()),
        }
    }
}
