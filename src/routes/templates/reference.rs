//! How templates are named in requests: `alias`, `team/alias` or an id, each perhaps with `:tag`.

use std::{fmt, str::FromStr};

use http::StatusCode;

use crate::{
    routes::{admin::is_name, reply::ApiError},
    store::{Build, DEFAULT_TAG, Store, StoreError, Team, Template},
};

/// A name of a template, well-formed but perhaps nobody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TemplateRef {
    namespace: Option<String>,
    name: String,
    tag: Option<String>,
}

// === impl TemplateRef ===

impl FromStr for TemplateRef {
    type Err = ApiError;

    /// Trims and lower-cases; each part has its alphabet (contract/control-plane 2.1).
    fn from_str(text: &str) -> Result<Self, ApiError> {
        let text = text.trim().to_lowercase();
        let (path, tag) = text.split_once(':').map_or((text.as_str(), None), |(path, tag)| (path, Some(tag)));
        let (namespace, name) =
            path.split_once('/').map_or((None, path), |(namespace, name)| (Some(namespace), name));
        let refused = |what: &str, part: &str| {
            Err(ApiError::bad_request(format!(
                "Invalid template reference: {what} '{part}' has characters that names do not have or is empty"
            )))
        };
        if !is_name(name) {
            return refused("name", name);
        }
        if let Some(namespace) = namespace.filter(|namespace| !is_name(namespace)) {
            return refused("namespace", namespace);
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return refused("tag", tag);
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            tag: tag.map(str::to_owned),
        })
    }
}

impl TemplateRef {
    /// A name that belongs to this team: with its namespace, or without any.
    pub(crate) fn of_team(text: &str, team: &Team) -> Result<Self, ApiError> {
        let name: Self = text.parse()?;
        match name.namespace() {
            Some(namespace) if namespace != team.slug => Err(ApiError::bad_request(format!(
                "namespace '{namespace}' does not belong to your team '{}'",
                team.slug
            ))),
            _ => Ok(name),
        }
    }

    /// Whether a tag was given.
    pub(crate) fn has_tag(&self) -> bool {
        self.tag.is_some()
    }

    /// The tag, if one was given.
    pub(crate) fn given_tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The tag that is meant.
    pub(crate) fn tag(&self) -> &str {
        self.tag.as_deref().unwrap_or(DEFAULT_TAG)
    }

    /// The name itself.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The team's part of the name, if it was given.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The template of this name, whoever may see it; tags are not looked at.
    pub(crate) async fn find_any(
        &self,
        store: &dyn Store,
        team: &Team,
    ) -> Result<Option<Template>, StoreError> {
        store.resolve_template(team.id, self.namespace(), self.name()).await
    }

    /// The template of this name that the team may use; tags are not looked at.
    pub(crate) async fn find(&self, store: &dyn Store, team: &Team) -> Result<Option<Template>, StoreError> {
        let found = self.find_any(store, team).await?;
        // Foreign private templates are hidden, not forbidden.
        Ok(found.filter(|template| template.public || template.team.is_none_or(|owner| owner == team.id)))
    }

    /// The template of this name if it is the team's own: 404 when there is none, 403 when it is
    /// another team's or everybody's.
    pub(super) async fn own(&self, store: &dyn Store, team: &Team) -> Result<Template, ApiError> {
        let found = self.find_any(store, team).await?;
        let template = found.ok_or_else(|| ApiError::not_found(format!("template '{self}' not found")))?;
        if template.team == Some(team.id) {
            return Ok(template);
        }
        let whose = if template.team.is_some() { "another team" } else { "the server" };
        Err(ApiError::new(StatusCode::FORBIDDEN, format!("template '{self}' belongs to {whose}")))
    }

    /// The template and the build that its tag points to, or the 404 that says which is missing.
    pub(crate) async fn resolve(
        &self,
        store: &dyn Store,
        team: &Team,
    ) -> Result<(Template, Build), ApiError> {
        let found = self.find(store, team).await?;
        let template = found.ok_or_else(|| ApiError::not_found(format!("template '{self}' not found")))?;
        let build = self.build(store, &template).await?;
        Ok((template, build))
    }

    /// The build of the template that the tag points to.
    pub(crate) async fn build(&self, store: &dyn Store, template: &Template) -> Result<Build, ApiError> {
        let tag = self.tag();
        let build = if tag == DEFAULT_TAG {
            template.build.clone()
        } else {
            store.tagged_build(&template.id, tag).await?
        };
        build.ok_or_else(|| ApiError::not_found(format!("tag '{tag}' does not exist for template '{self}'")))
    }
}

/// The name without its tag, as error texts have it.
impl fmt::Display for TemplateRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(formatter, "{namespace}/")?;
        }
        formatter.write_str(&self.name)
    }
}

/// Whether a text can be a tag.
pub(super) fn is_tag(text: &str) -> bool {
    // What a name may hold, and dots.
    is_name(&text.replace('.', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_trimmed_and_lower_cased() {
        let full: TemplateRef = " Team/Base:V1.0 ".parse().unwrap();
        assert_eq!(full.to_string(), "team/base");
        assert_eq!((full.namespace(), full.tag.as_deref()), (Some("team"), Some("v1.0")));
        assert!(!"base".parse::<TemplateRef>().unwrap().has_tag());
    }

    #[test]
    fn other_characters_are_refused() {
        assert!("a-b_c/d:1.2".parse::<TemplateRef>().is_ok());
        for text in ["", " ", "a b", "a/b/c", "/a", "a/", "a:", "a:b:c", "ä", "../x", "a.b", "a:b/c"] {
            let error = text.parse::<TemplateRef>().unwrap_err().body();
            assert!(error.contains("Invalid template reference: "), "{text}: {error}");
        }
    }
}
