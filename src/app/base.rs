//! The `base` template in the store: everybody's, kept in step with the image on disk.

use crate::{
    clock::Clock,
    id::{Entropy, TeamId, TemplateId},
    sandbox::Resources,
    store::{Build, Store, StoreError, Template},
    wire::warden::{ImageInfo, ImageKind},
};

/// The names that SDKs create from by default. `code-interpreter-v1` and `mcp-gateway` are `base`
/// until they are templates of their own: the names resolve, their servers do not run.
const ALIASES: [&str; 3] = ["base", "code-interpreter-v1", "mcp-gateway"];
/// The further name of the live view, so that nobody takes it for `base` proper.
const HOST_ALIAS: &str = "host";

/// Makes the store say what the image on disk is. A host upgrade becomes a new build of the same
/// template; sandboxes of an older build keep theirs.
pub async fn register(
    store: &dyn Store,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
    image: &ImageInfo,
    resources: Resources,
) -> Result<(), StoreError> {
    let now = clock.now();
    let aliases: Vec<String> = ALIASES
        .into_iter()
        .chain((image.kind == ImageKind::HostView).then_some(HOST_ALIAS))
        .map(str::to_owned)
        .collect();
    let nobody = TeamId(uuid::Uuid::nil());
    let known = store.resolve_template(nobody, None, ALIASES[0]).await?;
    let build_is_known = known
        .as_ref()
        .and_then(|template| template.build.as_ref())
        .is_some_and(|build| build.id == image.build && build.resources == resources);
    if build_is_known && known.as_ref().is_some_and(|template| template.aliases == aliases) {
        return Ok(());
    }
    let template = Template {
        id: known.as_ref().map_or_else(|| TemplateId::generate(entropy), |template| template.id.clone()),
        team: None,
        public: true,
        aliases,
        created_at: known.as_ref().map_or(now, |template| template.created_at),
        updated_at: now,
        last_spawned_at: known.as_ref().and_then(|template| template.last_spawned_at),
        spawn_count: known.as_ref().map_or(0, |template| template.spawn_count),
        build: None,
    };
    let build = Build {
        id: image.build,
        template: template.id.clone(),
        resources,
        fingerprint: image.fingerprint.clone(),
        created_at: now,
    };
    store.put_template(template).await?;
    store.add_build(build).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::SystemClock,
        id::{BuildId, OsEntropy},
        store::memory::MemoryStore,
    };

    const SIZE: Resources = Resources { cpu_count: 2, memory_mb: 1024, disk_mb: 10_240 };

    fn image(kind: ImageKind, fingerprint: &str) -> ImageInfo {
        ImageInfo {
            build: BuildId::generate(&OsEntropy),
            kind,
            fingerprint: Some(fingerprint.to_owned()),
            fresh: true,
            notice: None,
        }
    }

    async fn named(store: &MemoryStore, name: &str) -> Option<Template> {
        store.resolve_template(TeamId(uuid::Uuid::nil()), None, name).await.unwrap()
    }

    #[tokio::test]
    async fn a_host_upgrade_is_a_new_build_of_the_same_template() {
        let store = MemoryStore::default();
        let (before, after) = (image(ImageKind::HostPackages, "1"), image(ImageKind::HostPackages, "2"));
        register(&store, &SystemClock, &OsEntropy, &before, SIZE).await.unwrap();
        let first = named(&store, "base").await.unwrap();
        assert_eq!(first.build.as_ref().unwrap().id, before.build);
        register(&store, &SystemClock, &OsEntropy, &before, SIZE).await.unwrap();
        assert_eq!(named(&store, "base").await.unwrap(), first, "nothing changed, nothing is written");

        register(&store, &SystemClock, &OsEntropy, &after, SIZE).await.unwrap();
        let second = named(&store, "code-interpreter-v1").await.unwrap();
        assert_eq!((second.id, second.created_at), (first.id, first.created_at));
        assert_eq!(second.build.unwrap().fingerprint.as_deref(), Some("2"));

        // A package that is removed again brings the earlier build back.
        register(&store, &SystemClock, &OsEntropy, &before, SIZE).await.unwrap();
        assert_eq!(named(&store, "base").await.unwrap().build.unwrap().id, before.build);
    }

    #[tokio::test]
    async fn only_the_live_view_is_also_called_host() {
        let store = MemoryStore::default();
        register(&store, &SystemClock, &OsEntropy, &image(ImageKind::HostPackages, "1"), SIZE).await.unwrap();
        assert_eq!(named(&store, "host").await, None);
        register(&store, &SystemClock, &OsEntropy, &image(ImageKind::HostView, "1"), SIZE).await.unwrap();
        assert_eq!(
            named(&store, "host").await.map(|host| host.id),
            named(&store, "base").await.map(|base| base.id)
        );
    }
}
