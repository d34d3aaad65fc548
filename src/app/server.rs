//! One running server: everything joined in the order that a start needs, taken apart in the
//! order that a stop needs.
//!
//! ```text
//! start: certificate -> warden's socket -> engine -> store -> keys (first start: team and key) -> base template
//!        -> recovery (adopt, undo, sweep) -> ready
//! stop:  no new work -> requests end, at most GRACE -> registry -> warden
//!        asked for by a signal; or because the listener, the admin socket or the helper has ended,
//!        and then with an error, and with the sandboxes left for the next start
//! ```

use std::{
    fs, io,
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    net::UnixListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::{
    app::{
        base,
        clock::HostClock,
        host,
        pressure::HostMemory,
        tasks::Tasks,
        tls::{Authority, Given, Keeper},
    },
    clock::Clock,
    config::{Config, PausedPressure},
    id::{Entropy, OsEntropy},
    proxy::{self, gateway::Gateway, tls::Acceptor},
    routes::{self, AppState, Settings, Streams, keyring::KeyRing},
    runtime::{
        namespace::{NamespaceEngine, WardenClient},
        registry::{Limits, PausedPolicy, Registry},
        token::TokenKey,
    },
    store::{Store, sqlite::SqliteStore},
};

/// How long a stop waits for requests that are under way.
const GRACE: Duration = Duration::from_secs(10);
/// The team of the first start.
const FIRST_TEAM: &str = "default";

/// What a start needs to know.
pub struct Start<'a> {
    /// The settings.
    pub config: &'a Config,
    /// The domain in answers.
    pub domain: &'a str,
    /// The directory of database, secret and admin socket.
    pub gateway_dir: &'a Path,
    /// The operator's certificate; none: a development authority signs one.
    pub certificate: Option<Given>,
    /// The directory of the machines' link sockets.
    pub run_dir: &'a Path,
    /// The warden's socket.
    pub helper: OwnedFd,
    /// Takes lines on long work, for people.
    pub progress: &'a (dyn Fn(&str) + Send + Sync),
}

/// A server that is ready to serve.
pub struct Server {
    state: AppState,
    warden: WardenClient,
    admin: UnixListener,
    keeper: Keeper,
    notice: Option<String>,
    found: usize,
    asked: Asked,
    sandbox_connections: Option<u32>,
}

/// The signals that ask a server to stop. Taken at the very start: one that comes before the
/// server serves is heeded when it does, instead of killing a start half-way.
struct Asked {
    terminate: Signal,
    interrupt: Signal,
}

// === impl Asked ===

impl Asked {
    fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

// === impl Server ===

impl Server {
    /// Joins everything and recovers what an earlier server left.
    pub async fn start(start: Start<'_>) -> anyhow::Result<Self> {
        let asked = Asked::listen()?;
        let clock: Arc<dyn Clock> = Arc::new(HostClock::open(&start.gateway_dir.join("clock.json")));
        let keeper = if let Some(given) = start.certificate {
            Keeper::given(given, Arc::clone(&clock))?
        } else {
            let authority = Authority::open(start.gateway_dir, start.domain, clock.now())?;
            Keeper::development(authority, Arc::clone(&clock))?
        };
        let (engine, warden) = NamespaceEngine::connect(start.helper, start.run_dir).await?;
        let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
        let database = start.gateway_dir.join("firkin.db");
        let store: Arc<dyn Store> = Arc::new(
            SqliteStore::open(&database).with_context(|| format!("cannot open {}", database.display()))?,
        );
        let keys = KeyRing::load(Arc::clone(&store), Arc::clone(&clock), Arc::clone(&entropy)).await?;
        keys.allow_admin(&admin_token(&start.gateway_dir.join("admin-token"), &*entropy)?);
        let seed = TokenKey::new(secret(&start.gateway_dir.join("secret"), &*entropy)?);
        let limits = &start.config.limits;

        let notice = match warden.ensure_base(|text| (start.progress)(text)).await {
            Ok(image) => {
                base::register(&*store, &*clock, &*entropy, &image, limits.resources).await?;
                image.notice
            }
            Err(error) => Some(format!("there is no base template: {error}")),
        };
        let registry = Registry::new(
            engine,
            Arc::clone(&store),
            Arc::clone(&clock),
            Arc::clone(&entropy),
            seed,
            Limits {
                max_length: limits.max_timeout,
                admission: host::rules(&start.config.admission),
                floors: host::floors(&start.config.admission),
                ..Limits::default()
            },
        );
        registry.answer_inside(Arc::new(routes::Inside::new(Arc::clone(&clock))));
        let found = registry.recover().await?.adopted.len();
        registry.keep_warm(host::warm_plan(&start.config.admission));
        let pressure = start.config.pressure;
        let policy = match pressure.paused {
            PausedPressure::Keep => PausedPolicy::Keep,
            PausedPressure::Disk => PausedPolicy::Disk,
        };
        let memory = HostMemory::new(u64::from(pressure.below_mb) << 20);
        registry.watch_pressure(Arc::new(memory), policy);
        let settings = Settings {
            domain: start.domain.into(),
            max_timeout: limits.max_timeout,
            default_resources: limits.resources,
            allowed_origins: start.config.network.allowed_origins.clone().into(),
        };
        let streams = Streams::new(&*entropy);
        let state = AppState { registry, store, keys, clock, entropy, streams, settings };
        let admin = admin_socket(&start.gateway_dir.join("admin.sock"))?;
        let sandbox_connections = limits.sandbox_connections;
        Ok(Self { state, warden, admin, keeper, notice, found, asked, sandbox_connections })
    }

    /// What there is to say about the base template.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// How many sandboxes of an earlier server go on.
    pub fn found(&self) -> usize {
        self.found
    }

    /// Makes the first team and its key when there is none yet, and gives the key once.
    pub async fn first_key(&self) -> anyhow::Result<Option<String>> {
        if self.state.keys.first_team().is_some() {
            return Ok(None);
        }
        let team = self.state.keys.add_team(FIRST_TEAM, "The team of the first start").await?;
        let key = self.state.keys.issue(team.id, "first start").await?;
        Ok(Some(key.secret))
    }

    /// Serves until a signal asks to stop; fails when something ends that a server cannot do without.
    pub async fn run(mut self, listener: TcpListener, stop_sandboxes: bool) -> anyhow::Result<ExitCode> {
        let stop = CancellationToken::new();
        let router = routes::router(self.state.clone());
        let mut settings = proxy::gateway::Settings::new(&*self.state.settings.domain);
        settings.sandbox_connections = self.sandbox_connections;
        settings.tls = Some(Acceptor::new(self.keeper.certificates())?);
        let gateway = Gateway::new(self.state.registry.clone(), router, settings);
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let edge = proxy::gateway::serve(listener, gateway, stop.clone());
        let admin = axum::serve(self.admin, routes::admin::router(self.state.clone()))
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        // Not among the tasks: without it the server goes on until a certificate ends, and it says so.
        tokio::spawn(self.keeper.run(stop.clone()));
        let mut tasks = Tasks::default();
        tasks.spawn("listener", async move {
            edge.await;
            Ok(())
        });
        tasks.spawn("admin socket", async move { Ok(admin.await?) });

        let failed = tokio::select! {
            () = self.asked.wait() => None,
            error = tasks.first_end() => Some(error),
            () = self.warden.closed() => {
                stop.cancel();
                bail!("the privileged helper ended; sandboxes stay, start the server again to find them");
            }
        };
        stop.cancel();
        self.state.streams.close();
        // Whoever asked for the sandboxes' end did not mean a server that fails.
        let stop_sandboxes = stop_sandboxes && failed.is_none();
        tracing::info!(stop.sandboxes = stop_sandboxes, "stopping");
        let drained = async {
            self.state.registry.shutdown(stop_sandboxes).await;
            tasks.finish().await
        };
        let ended = tokio::time::timeout(GRACE, drained).await.unwrap_or_else(|_| {
            tracing::warn!("requests were still under way after {GRACE:?}; they are cut");
            Ok(())
        });
        self.warden.shutdown(stop_sandboxes).await?;
        match failed {
            Some(error) => bail!("{error:#}; sandboxes stay, start the server again to find them"),
            None => ended.map(|()| ExitCode::SUCCESS),
        }
    }
}

/// Reads the secret that tokens are derived from, or makes it; only its owner may read it.
fn secret(path: &Path, entropy: &dyn Entropy) -> anyhow::Result<[u8; 32]> {
    match fs::read(path) {
        Ok(bytes) => bytes.as_slice().try_into().with_context(|| {
            format!("{} is damaged: remove it to start over (all tokens then change)", path.display())
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0; 32];
            entropy.fill(&mut bytes);
            write_private(path, &bytes)?;
            Ok(bytes)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Reads the operator's token, or makes it. Text, so that tools can be given the file.
fn admin_token(path: &Path, entropy: &dyn Entropy) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let token = text.trim();
            if token.len() < 32 {
                bail!("{} holds no token: remove it to have a new one made", path.display());
            }
            Ok(token.to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0; 32];
            entropy.fill(&mut bytes);
            let token = hex::encode(bytes);
            write_private(path, token.as_bytes())?;
            Ok(token)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes a file that only its owner may read, whole or not at all.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = fs::OpenOptions::new();
    let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

/// Listens on the admin socket, 0600, in place of one that an earlier server left.
fn admin_socket(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
