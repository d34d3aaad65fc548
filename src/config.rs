//! Configuration: one small struct a concern; flags win over environment, environment over file,
//! file over defaults. A wrong value is refused with its key and the place it came from.

mod admission;
mod source;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub use admission::{Admission, Warm};
pub use source::{ConfigError, Sources};

use crate::{sandbox::Resources, wire::warden::StorageDriver};

/// Where a configuration file is looked for when none is named.
pub const DEFAULT_FILE: &str = "/etc/firkin/firkin.toml";
/// Where everything is kept when nothing else is said.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/firkin";

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Who can reach the server, and under which name.
    pub network: Network,
    /// Where things are kept.
    pub storage: Storage,
    /// What sandboxes may use.
    pub limits: Limits,
    /// What sandboxes may have together.
    pub admission: Admission,
    /// What paused sandboxes do when the host is short of memory.
    pub pressure: Pressure,
    /// What is written to the log.
    pub log: Log,
}

/// Who can reach the server, and under which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The one address it listens on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The domain in answers; none: `firkin.localhost:<port>`.
    pub domain: Option<String>,
    /// Origins whose pages may open streams, besides the server's own.
    pub allowed_origins: Vec<String>,
    /// The server's own certificate; none: a development authority signs one.
    pub tls: Option<TlsFiles>,
}

/// A certificate with its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the server's certificate first.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// Where things are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The data directory.
    pub data_dir: PathBuf,
    /// How sandboxes' disks are kept; none: btrfs where the data directory is on it, else plain.
    pub driver: Option<StorageDriver>,
}

/// What sandboxes may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The longest run; none: no limit.
    pub max_timeout: Option<Duration>,
    /// Requests in flight to one sandbox; none: no limit.
    pub sandbox_connections: Option<u32>,
    /// The size of sandboxes whose template says nothing else.
    pub resources: Resources,
}

/// What paused sandboxes do when the host is short of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// What they give.
    pub paused: PausedPressure,
    /// The host is short of memory when less is available, in MiB.
    pub below_mb: u32,
}

/// What paused sandboxes give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PausedPressure {
    /// What they can without losing anything.
    Keep,
    /// Their processes too, the longest paused first.
    Disk,
}

/// What is written to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A `tracing` filter: `info`, `firkin=debug`, ...
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
    /// Where it goes; none: to stderr.
    pub file: Option<LogFile>,
}

/// A log file and the room that it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The file; older ones have `.1`, `.2` ... behind its name.
    pub path: PathBuf,
    /// The largest file, in MiB.
    pub mb: u32,
    /// Files, the present one included.
    pub count: u32,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

// === impl Config ===

impl Config {
    /// Every key with its default that is not another file's.
    const KEYS: [(&'static str, &'static str); 19] = [
        ("listen", "127.0.0.1:3000"),
        ("domain", "firkin.localhost:<port>"),
        ("allowed-origins", "none"),
        ("tls-cert", "signed by a development authority"),
        ("tls-key", "the development certificate's own"),
        ("data-dir", DEFAULT_DATA_DIR),
        ("storage", "auto"),
        ("max-timeout-hours", "no limit"),
        ("sandbox-connections", "no limit"),
        ("cpu-count", "2"),
        ("memory-mb", "1024"),
        ("disk-mb", "10240"),
        ("paused-pressure", "keep"),
        ("paused-pressure-mb", "512"),
        ("log", "info"),
        ("log-format", "text"),
        ("log-file", "none, the log goes to stderr"),
        ("log-file-mb", "32"),
        ("log-files", "4"),
    ];

    /// Every key with its default, for the file and the documentation.
    pub fn keys() -> Vec<(&'static str, &'static str)> {
        Self::KEYS.into_iter().chain(admission::KEYS).collect()
    }

    /// Resolves every key.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        sources.check_keys(&Self::keys())?;
        Ok(Self {
            network: Network {
                listen: sources
                    .value("listen", "an address and port, such as 127.0.0.1:3000")?
                    .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 3000))),
                domain: sources.checked("domain", domain)?,
                allowed_origins: sources.checked("allowed-origins", origins)?.unwrap_or_default(),
                tls: tls_files(sources)?,
            },
            storage: Storage {
                data_dir: sources
                    .checked("data-dir", absolute_path)?
                    .unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR)),
                driver: sources.checked("storage", storage)?.flatten(),
            },
            limits: Limits {
                max_timeout: sources
                    .checked("max-timeout-hours", positive)?
                    .map(|hours| Duration::from_secs(u64::from(hours) * 3600)),
                sandbox_connections: sources.checked("sandbox-connections", positive)?,
                resources: Resources {
                    cpu_count: sources.checked("cpu-count", cpu_count)?.unwrap_or(2),
                    memory_mb: sources.checked("memory-mb", memory_mb)?.unwrap_or(1024),
                    disk_mb: sources.checked("disk-mb", positive)?.unwrap_or(10_240),
                },
            },
            admission: Admission::load(sources)?,
            pressure: Pressure {
                paused: sources.checked("paused-pressure", paused_pressure)?.unwrap_or(PausedPressure::Keep),
                below_mb: sources.checked("paused-pressure-mb", positive)?.unwrap_or(512),
            },
            log: Log {
                filter: sources.value("log", "a log filter")?.unwrap_or_else(|| "info".to_owned()),
                format: sources.checked("log-format", log_format)?.unwrap_or(LogFormat::Text),
                file: log_file(sources)?,
            },
        })
    }
}

fn domain(text: &str) -> Result<String, &'static str> {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let labels_fit = host.split('.').all(|label| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    });
    let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if labels_fit && port_fits {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a host name, with a port where it is not 443: sandboxes.example.com or firkin.localhost:3000")
    }
}

/// Origins as browsers send them, separated by commas.
fn origins(text: &str) -> Result<Vec<String>, &'static str> {
    let origins = text.split(',').map(str::trim).filter(|origin| !origin.is_empty());
    let origins: Option<Vec<String>> = origins
        .map(|origin| {
            let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"))?;
            let fits = !authority.is_empty() && !authority.contains(['/', '*', '@', '?', '#', ' ']);
            fits.then(|| origin.to_ascii_lowercase())
        })
        .collect();
    origins.ok_or("origins separated by commas, such as https://ide.example.com,http://localhost:5173")
}

fn tls_files(sources: &Sources) -> Result<Option<TlsFiles>, ConfigError> {
    let cert = sources.checked("tls-cert", absolute_path)?;
    let key = sources.checked("tls-key", absolute_path)?;
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert, key })),
        (None, None) => Ok(None),
        (Some(_), None) => sources.checked("tls-cert", |_| Err("enough alone: give tls-key too")),
        (None, Some(_)) => sources.checked("tls-key", |_| Err("enough alone: give tls-cert too")),
    }
}

fn storage(text: &str) -> Result<Option<StorageDriver>, &'static str> {
    match text {
        "auto" => Ok(None),
        "plain" => Ok(Some(StorageDriver::Plain)),
        "btrfs" => Ok(Some(StorageDriver::Btrfs)),
        _ => Err("auto, plain or btrfs"),
    }
}

fn log_file(sources: &Sources) -> Result<Option<LogFile>, ConfigError> {
    let path = sources.checked("log-file", absolute_path)?;
    let mb = sources.checked("log-file-mb", positive)?.unwrap_or(32);
    let count = sources.checked("log-files", positive)?.unwrap_or(4);
    Ok(path.map(|path| LogFile { path, mb, count }))
}

fn absolute_path(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("an absolute path") }
}

fn positive(text: &str) -> Result<u32, &'static str> {
    text.parse().ok().filter(|number| *number > 0).ok_or("a whole number above 0")
}

fn cpu_count(text: &str) -> Result<u32, &'static str> {
    text.parse()
        .ok()
        .filter(|count| (1..=32).contains(count) && (*count == 1 || *count % 2 == 0))
        .ok_or("1 or an even number up to 32")
}

fn memory_mb(text: &str) -> Result<u32, &'static str> {
    text.parse()
        .ok()
        .filter(|memory| *memory >= 128 && *memory % 2 == 0)
        .ok_or("an even number of MiB, at least 128")
}

fn paused_pressure(text: &str) -> Result<PausedPressure, &'static str> {
    match text {
        "keep" => Ok(PausedPressure::Keep),
        "disk" => Ok(PausedPressure::Disk),
        _ => Err("keep or disk"),
    }
}

fn log_format(text: &str) -> Result<LogFormat, &'static str> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("text or json"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &[(&str, &str)], environment: &[(&str, &str)], file: &str) -> Result<Config, ConfigError> {
        let sources = Sources::new(
            flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
            environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        )
        .with_file("firkin.toml".into(), file)?;
        Config::load(&sources)
    }

    #[test]
    fn nothing_said_gives_the_defaults() {
        let config = load(&[], &[], "").unwrap();
        assert_eq!(config.network.listen.to_string(), "127.0.0.1:3000");
        assert_eq!(config.limits.max_timeout, None);
        assert_eq!(config.limits.resources.memory_mb, 1024);
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let file = "listen = \"127.0.0.1:1\"\n";
        let environment = [("FIRKIN_LISTEN", "127.0.0.1:2")];
        let port = |config: Config| config.network.listen.port();
        assert_eq!(port(load(&[], &[], file).unwrap()), 1);
        assert_eq!(port(load(&[], &environment, file).unwrap()), 2);
        assert_eq!(port(load(&[("listen", "127.0.0.1:3")], &environment, file).unwrap()), 3);
    }

    #[test]
    fn a_wrong_value_names_its_key_and_its_place() {
        let error = load(&[], &[("FIRKIN_MEMORY_MB", "127")], "").unwrap_err().to_string();
        assert!(error.contains("memory-mb") && error.contains("FIRKIN_MEMORY_MB"), "{error}");
        let error = load(&[], &[], "memory-mb = 129\n").unwrap_err().to_string();
        assert!(error.contains("memory-mb") && error.contains("firkin.toml"), "{error}");
        let error = load(&[("listen", "nowhere")], &[], "").unwrap_err().to_string();
        assert!(error.contains("--listen") && error.contains("nowhere"), "{error}");
        assert!(load(&[], &[("FIRKIN_MEMORY_MB", "128")], "").is_ok());
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused() {
        let error = load(&[], &[], "lisen = \"127.0.0.1:1\"\n").unwrap_err().to_string();
        assert!(error.contains("lisen") && error.contains("listen"), "{error}");
    }

    #[test]
    fn origins_are_whole_and_without_wildcards() {
        let origins =
            |text: &str| load(&[("allowed-origins", text)], &[], "").map(|c| c.network.allowed_origins);
        assert_eq!(
            origins("https://A.example, http://b:5173").unwrap(),
            ["https://a.example", "http://b:5173"]
        );
        for bad in ["*", "a.example", "https://*.example", "https://a.example/", "https://"] {
            assert!(origins(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_certificate_comes_with_its_key() {
        let (cert, key) = (("tls-cert", "/c.pem"), ("tls-key", "/k.pem"));
        assert!(load(&[cert, key], &[], "").unwrap().network.tls.is_some());
        assert_eq!(load(&[], &[], "").unwrap().network.tls, None);
        let error = load(&[cert], &[], "").unwrap_err().to_string();
        assert!(error.contains("--tls-cert") && error.contains("give tls-key"), "{error}");
        assert!(load(&[key], &[], "").is_err());
    }

    #[test]
    fn domains_are_host_names_with_an_optional_port() {
        for good in ["localhost", "firkin.localhost:3000", "sandboxes.example.com"] {
            assert!(load(&[("domain", good)], &[], "").is_ok(), "{good}");
        }
        for bad in ["", "a..b", "http://x", "x:0", "x:99999", "-_", "a b"] {
            assert!(load(&[("domain", bad)], &[], "").is_err(), "{bad}");
        }
    }
}
