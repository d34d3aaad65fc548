//! The envd filesystem service (contract/sandbox 4): requests in, one blocking operation off the
//! async thread, `EntryInfo` or a coded error out. Watching lives in `filesystem::watching`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use connectrpc::{
    ConnectError, Encodable, ErrorCode, RequestContext, Response, ServiceRequest, ServiceResult,
    ServiceStream,
};
use tokio::task::spawn_blocking;

use self::{change::Owner, watching::PollingWatchers};
use crate::{
    guest::{
        entry,
        failure::{self, is_missing},
        list, paths,
        rpc::StreamDeadline,
        state::Guest,
        users::{User, Users},
        watch::Watches,
    },
    wire::rpc::filesystem::{
        CreateWatcherRequest, CreateWatcherResponse, EntryInfo, Filesystem, GetWatcherEventsRequest,
        GetWatcherEventsResponse, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse,
        MoveRequest, MoveResponse, RemoveRequest, RemoveResponse, RemoveWatcherRequest,
        RemoveWatcherResponse, StatRequest, StatResponse, WatchDirRequest, WatchDirResponse,
    },
};

pub(crate) mod change;
mod copy;
mod erase;
mod watching;

/// The one user agent whose decoder knows only the first fields of an entry.
const LEGACY_AGENT: &str = "connect-python";

/// Why an operation did not do what was asked, by the code that it is answered with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FilesystemError {
    /// The request cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// What it names is not there.
    #[error("{0}")]
    NotFound(String),
    /// What it would make is there.
    #[error("{0}")]
    Exists(String),
    /// Links lead in a circle.
    #[error("{0}")]
    Precondition(String),
    /// The answer, or the number of watchers, has a bound.
    #[error("{0}")]
    TooMany(String),
    /// The kernel refused.
    #[error("{0}")]
    Internal(String),
}

/// The service; one for the guest.
pub(crate) struct FilesystemService {
    guest: Guest,
    watches: Arc<Watches>,
    polling: PollingWatchers,
}

/// Who asks, and in which dialect.
struct Caller {
    user: Arc<User>,
    workdir: Option<String>,
    legacy: bool,
}

// === impl FilesystemError ===

impl From<FilesystemError> for ConnectError {
    fn from(error: FilesystemError) -> Self {
        let code = match &error {
            FilesystemError::Invalid(_) => ErrorCode::InvalidArgument,
            FilesystemError::NotFound(_) => ErrorCode::NotFound,
            FilesystemError::Exists(_) => ErrorCode::AlreadyExists,
            FilesystemError::Precondition(_) => ErrorCode::FailedPrecondition,
            FilesystemError::TooMany(_) => ErrorCode::ResourceExhausted,
            FilesystemError::Internal(_) => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

// === impl Caller ===

impl Caller {
    fn resolve(&self, path: &str) -> Result<PathBuf, ConnectError> {
        paths::resolve(path, &self.user, self.workdir.as_deref())
            .map_err(|error| ConnectError::invalid_argument(error.to_string()))
    }

    fn owner(&self) -> Owner {
        Owner { uid: self.user.uid, gid: self.user.gid }
    }

    fn dialect(&self, entry: EntryInfo) -> EntryInfo {
        if self.legacy { entry::legacy(entry) } else { entry }
    }

    fn answer<T>(&self, message: T) -> Response<T> {
        let response = Response::new(message);
        if self.legacy { response.with_header("X-E2B-Legacy-SDK", "true") } else { response }
    }
}

// === impl FilesystemService ===

impl FilesystemService {
    /// The service of this guest. Nothing is held until the first watch.
    pub(crate) fn new(guest: Guest) -> Self {
        let watches = Watches::new(guest.users());
        Self { guest, watches, polling: PollingWatchers::default() }
    }

    fn caller(&self, context: &RequestContext) -> Result<Caller, ConnectError> {
        let agent = context.header(http::header::USER_AGENT);
        Ok(Caller {
            user: self.guest.request_user(context.extensions())?,
            workdir: self.guest.default_workdir(),
            legacy: agent.is_some_and(|agent| agent == LEGACY_AGENT),
        })
    }

    /// Refuses a change while the sandbox's checkout is not what it shall be.
    fn admit(&self, operation: &str) -> Result<(), ConnectError> {
        self.guest.gate().admit(operation).map_err(ConnectError::failed_precondition)
    }

    /// Runs one operation off the async thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Users) -> Result<T, FilesystemError> + Send + 'static,
    ) -> Result<T, ConnectError> {
        let users = self.guest.users();
        let done = spawn_blocking(move || work(&users)).await;
        Ok(done.map_err(|_| ConnectError::internal("the operation was aborted"))??)
    }
}

/// lstat, as `Stat` answers it.
fn stat(path: &Path, users: &Users) -> Result<EntryInfo, FilesystemError> {
    entry::describe(path, users).map_err(|error| {
        let text = failure::describe("lstat", path, &error);
        if is_missing(&error) {
            FilesystemError::NotFound(format!("file not found: {text}"))
        } else {
            FilesystemError::Internal(format!("error getting file info: {text}"))
        }
    })
}

impl Filesystem for FilesystemService {
    async fn stat<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, StatRequest>,
    ) -> ServiceResult<impl Encodable<StatResponse> + Send + use<'a>> {
        let caller = self.caller(&context)?;
        let path = caller.resolve(request.path)?;
        let entry = self.run(move |users| stat(&path, users)).await?;
        Ok(caller.answer(StatResponse { entry: caller.dialect(entry).into(), ..Default::default() }))
    }

    async fn make_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<MakeDirResponse> + Send + use<'a>> {
        let caller = self.caller(&context)?;
        self.admit("mkdir")?;
        let (path, owner) = (caller.resolve(request.path)?, caller.owner());
        let made = self.run(move |users| {
            change::make_dir(&path, owner)?;
            stat(&path, users)
        });
        let entry = made.await?;
        Ok(caller.answer(MakeDirResponse { entry: caller.dialect(entry).into(), ..Default::default() }))
    }

    async fn r#move<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, MoveRequest>,
    ) -> ServiceResult<impl Encodable<MoveResponse> + Send + use<'a>> {
        let caller = self.caller(&context)?;
        self.admit("move")?;
        let (source, destination) = (caller.resolve(request.source)?, caller.resolve(request.destination)?);
        let owner = caller.owner();
        let moved = self.run(move |users| {
            change::rename(&source, &destination, owner)?;
            stat(&destination, users)
        });
        let entry = moved.await?;
        Ok(caller.answer(MoveResponse { entry: caller.dialect(entry).into(), ..Default::default() }))
    }

    async fn list_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, ListDirRequest>,
    ) -> ServiceResult<impl Encodable<ListDirResponse> + Send + use<'a>> {
        let caller = self.caller(&context)?;
        let (path, depth) = (caller.resolve(request.path)?, request.depth);
        let mut entries = self.run(move |users| list::list(&path, depth, users)).await?;
        if caller.legacy {
            entries = entries.into_iter().map(entry::legacy).collect();
        }
        Ok(caller.answer(ListDirResponse { entries, ..Default::default() }))
    }

    async fn remove<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, RemoveRequest>,
    ) -> ServiceResult<impl Encodable<RemoveResponse> + Send + use<'a>> {
        let caller = self.caller(&context)?;
        self.admit("remove")?;
        let path = caller.resolve(request.path)?;
        self.run(move |_| change::remove(&path)).await?;
        Ok(caller.answer(RemoveResponse::default()))
    }

    async fn watch_dir(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<WatchDirResponse> + Send + use<>>> {
        let caller = self.caller(&context)?;
        let wish = watching::Wish {
            path: caller.resolve(request.path)?,
            recursive: request.recursive,
            entries: request.include_entry && !caller.legacy,
            network: request.allow_network_mounts,
        };
        let subscription = self.subscribe(wish).await?;
        let keepalive = watching::keepalive(context.headers());
        let deadline = StreamDeadline::of(&context);
        let stream: ServiceStream<WatchDirResponse> =
            Box::pin(watching::stream(subscription, keepalive, deadline));
        Ok(caller.answer(stream))
    }

    async fn create_watcher<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, CreateWatcherRequest>,
    ) -> ServiceResult<impl Encodable<CreateWatcherResponse> + Send + use<'a>> {
        let caller = self.caller(&context)?;
        let wish = watching::Wish {
            path: caller.resolve(request.path)?,
            recursive: request.recursive,
            entries: request.include_entry && !caller.legacy,
            network: request.allow_network_mounts,
        };
        let subscription = self.subscribe(wish).await?;
        let watcher_id = self.polling.add(subscription, self.guest.entropy());
        Ok(caller.answer(CreateWatcherResponse { watcher_id, ..Default::default() }))
    }

    async fn get_watcher_events<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, GetWatcherEventsRequest>,
    ) -> ServiceResult<impl Encodable<GetWatcherEventsResponse> + Send + use<'a>> {
        let caller = self.caller(&context)?;
        let watcher = self.polling.get(request.watcher_id)?;
        let events =
            self.run(move |_| watcher.poll().map_err(|error| FilesystemError::Internal(error.to_string())));
        let events = events.await?.into_iter().map(watching::message).collect();
        Ok(caller.answer(GetWatcherEventsResponse { events, ..Default::default() }))
    }

    async fn remove_watcher<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, RemoveWatcherRequest>,
    ) -> ServiceResult<impl Encodable<RemoveWatcherResponse> + Send + use<'a>> {
        let caller = self.caller(&context)?;
        self.polling.remove(request.watcher_id)?;
        Ok(caller.answer(RemoveWatcherResponse::default()))
    }
}

#[cfg(test)]
mod tests;
