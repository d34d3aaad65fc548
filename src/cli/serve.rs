//! `firkin serve`: from root with one thread to a gateway without privilege.
//!
//! ```text
//! root, one thread:   check the build and the host -> prepare the data directory -> bind the port
//!                     -> fork the warden -> give up every privilege
//! ordinary user:      start tokio -> store, keys, base template, recovery -> ready line -> serve
//! SIGTERM, SIGINT:    no new work, at most 10 s; sandboxes stay, unless --stop-sandboxes
//! ```
//! Each step before the ready line ends the start with a message that says what to do.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::{
    app::{
        host,
        server::{self, Server},
        tls::Given,
    },
    cli::{embedded, logfile::Diverted, note, say},
    config::{self, Config},
    telemetry, warden,
};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;

/// Flags of `firkin serve`.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The one address for everything; port 0 takes a free one [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// The domain in answers, which `get_host()` builds on [default: firkin.localhost:PORT]
    #[arg(long, value_name = "NAME[:PORT]")]
    domain: Option<String>,
    /// The server's certificate chain, PEM; read again when it changes [default: a development
    /// authority signs one, see `firkin ca`]
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// The key of --tls-cert, PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Longest run of a sandbox, in hours [default: no limit]
    #[arg(long, value_name = "HOURS")]
    max_timeout_hours: Option<String>,
    /// How sandboxes' disks are kept: btrfs (snapshots at once, sizes enforced), plain, or auto: btrfs
    /// where --data-dir is on it, else plain [default: auto]
    #[arg(long, value_name = "DRIVER")]
    storage: Option<String>,
    /// What paused sandboxes give when the host is short of memory: keep (caches, swap) or disk (the
    /// processes of the longest paused end too) [default: keep]
    #[arg(long, value_name = "POLICY")]
    paused_pressure: Option<String>,
    /// The host is short of memory when less MiB are available [default: 512]
    #[arg(long, value_name = "MIB")]
    paused_pressure_mb: Option<String>,
    /// Write the log there instead of to stderr; 4 files of 32 MiB are kept, the newest without a number
    #[arg(long, value_name = "FILE")]
    log_file: Option<String>,
    /// End all sandboxes when the server stops; without it they stay and the next start finds them
    #[arg(long)]
    stop_sandboxes: bool,
    #[command(flatten)]
    admission: AdmissionArgs,
}

/// What sandboxes may have together.
#[derive(Debug, Args)]
#[command(next_help_heading = "Admission")]
struct AdmissionArgs {
    /// Sandboxes that run at the same time; more wait [default: no limit]
    #[arg(long, value_name = "COUNT")]
    max_sandboxes: Option<String>,
    /// Virtual CPUs of running sandboxes for each CPU of the host [default: no limit]
    #[arg(long, value_name = "FACTOR")]
    cpu_oversubscription: Option<String>,
    /// Memory that sandboxes never get, in MiB [default and minimum: 15 % of the host's]
    #[arg(long, value_name = "MIB")]
    memory_reserve_mb: Option<String>,
    /// What a sandbox's memory costs: what is in `use`, or its whole `limit` [default: use]
    #[arg(long, value_name = "WHAT")]
    memory_charge: Option<String>,
    /// The least memory that a running sandbox costs, in MiB [default: 8]
    #[arg(long, value_name = "MIB")]
    memory_floor_mb: Option<String>,
    /// Creates and resumes that may wait for room; more are answered 429 [default: 64]
    #[arg(long, value_name = "COUNT")]
    queue: Option<String>,
    /// How long one of them waits before it is answered 503 [default: 30]
    #[arg(long, value_name = "SECONDS")]
    queue_seconds: Option<String>,
    /// Free disk space, in MiB, below which nothing new is made [default: 10240, at most 5 % of
    /// the disk]
    #[arg(long, value_name = "MIB")]
    disk_floor_mb: Option<String>,
    /// The same for warm machines [default: 20480, at most 10 % of the disk]
    #[arg(long, value_name = "MIB")]
    warm_disk_floor_mb: Option<String>,
    /// Templates of which booted machines wait for creates, such as base=4,team/name:tag=1; or
    /// none [default: base=4]
    #[arg(long, value_name = "TEMPLATE=COUNT,...")]
    warm: Option<String>,
    /// How old a warm machine may become [default: 60]
    #[arg(long, value_name = "MINUTES")]
    warm_max_age_minutes: Option<String>,
}

// === impl ServeArgs ===

impl ServeArgs {
    /// The flags that are settings.
    pub(super) fn flags(&self) -> [(&'static str, Option<String>); 20] {
        let admission = &self.admission;
        [
            ("listen", self.listen.clone()),
            ("domain", self.domain.clone()),
            ("tls-cert", self.tls_cert.clone()),
            ("tls-key", self.tls_key.clone()),
            ("max-timeout-hours", self.max_timeout_hours.clone()),
            ("storage", self.storage.clone()),
            ("max-sandboxes", admission.max_sandboxes.clone()),
            ("cpu-oversubscription", admission.cpu_oversubscription.clone()),
            ("memory-reserve-mb", admission.memory_reserve_mb.clone()),
            ("memory-charge", admission.memory_charge.clone()),
            ("memory-floor-mb", admission.memory_floor_mb.clone()),
            ("queue", admission.queue.clone()),
            ("queue-seconds", admission.queue_seconds.clone()),
            ("disk-floor-mb", admission.disk_floor_mb.clone()),
            ("warm-disk-floor-mb", admission.warm_disk_floor_mb.clone()),
            ("warm", admission.warm.clone()),
            ("warm-max-age-minutes", admission.warm_max_age_minutes.clone()),
            ("log-file", self.log_file.clone()),
            ("paused-pressure", self.paused_pressure.clone()),
            ("paused-pressure-mb", self.paused_pressure_mb.clone()),
        ]
    }
}

pub(super) fn run(args: &ServeArgs, config: &Config) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "serve needs root: it makes namespaces, mounts and cgroups, and then answers requests as an \
             ordinary user. Run `sudo firkin serve`. A rootless mode is not built yet."
        );
    }
    let guest = embedded::guest().context("this binary carries no guest; build it with `make build`")?;
    let _diverted = match &config.log.file {
        Some(file) => Some(
            Diverted::start(file)
                .with_context(|| format!("cannot write the log to {}", file.path.display()))?,
        ),
        None => None,
    };
    telemetry::start(&config.log)?;
    let prepared = warden::prepare(&config.storage.data_dir, config.storage.driver)?;
    let listener = TcpListener::bind(config.network.listen).with_context(|| {
        format!("cannot listen on {}; choose another address with --listen", config.network.listen)
    })?;
    // As root, because keys are often root's alone.
    let certificate = match &config.network.tls {
        Some(files) => Some(Given::load(&files.cert, &files.key)?),
        None => None,
    };
    // Many clients may call at the same moment; the standard library's queue is short.
    rustix::net::listen(&listener, BACKLOG)?;
    let helper = warden::fork(&prepared, guest, embedded::sudo())?;
    warden::drop_privileges(&prepared)?;
    std::fs::read_dir(prepared.gateway_dir()).with_context(|| {
        format!(
            "the gateway's user (uid {}) cannot reach {}: let others pass through the directories above it \
             (chmod o+x), or choose another --data-dir",
            prepared.gateway_uid(),
            config.storage.data_dir.display()
        )
    })?;
    if let Some(Err(error)) = certificate.as_ref().map(Given::readable) {
        note(&format!(
            "firkin: {error}: a renewed certificate needs a new start, because the gateway's user (uid {}) cannot \
             read it; see \"Names\" in docs/operations.md",
            prepared.gateway_uid()
        ));
    }
    for line in host::preflight(&config.admission, &config.storage.data_dir) {
        note(&format!("firkin: {line}"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(serve(args, config, &prepared, listener, helper, certificate))?;
    // Tasks that are still busy (an idle client's connection) do not hold up the exit.
    runtime.shutdown_background();
    Ok(code)
}

async fn serve(
    args: &ServeArgs,
    config: &Config,
    prepared: &warden::Prepared,
    listener: TcpListener,
    helper: OwnedFd,
    certificate: Option<Given>,
) -> anyhow::Result<ExitCode> {
    let address = listener.local_addr()?;
    let domain =
        config.network.domain.clone().unwrap_or_else(|| format!("firkin.localhost:{}", address.port()));
    let server = Server::start(server::Start {
        config,
        domain: &domain,
        certificate,
        gateway_dir: &prepared.gateway_dir(),
        run_dir: &prepared.run_dir(),
        helper,
        progress: &|text| note(&format!("firkin: {text}")),
    })
    .await?;
    if let Some(notice) = server.notice() {
        note(&format!("firkin: {notice}"));
    }
    let url = format!("http://{}", reachable(address));
    if let Some(key) = server.first_key().await? {
        say(&first_lines(&url, &key, &domain, &config.storage.data_dir));
    }
    say(&format!(
        "firkin ready at {url} (domain {domain}, {} sandboxes found, data in {})",
        server.found(),
        config.storage.data_dir.display()
    ));
    server.run(listener, args.stop_sandboxes).await
}

/// The address that a client on this machine uses.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

fn first_lines(url: &str, key: &str, domain: &str, data_dir: &Path) -> String {
    let place = if data_dir == Path::new(config::DEFAULT_DATA_DIR) {
        String::new()
    } else {
        format!(" --data-dir {}", data_dir.display())
    };
    format!(
        r#"A team and an API key were made. The key is shown only now; `firkin key create` makes more.

  export E2B_API_URL={url}
  export E2B_SANDBOX_URL={url}
  export E2B_API_KEY={key}

  Python  pip install e2b
          python3 -c 'from e2b import Sandbox; print(Sandbox.create().commands.run("echo hi").stdout)'
  JS      npm install e2b
          node -e 'import("e2b").then(async (e2b) => console.log((await (await e2b.Sandbox.create()).commands.run("echo hi")).stdout))'
  curl    curl -s -X POST $E2B_API_URL/v2/sandboxes -H "X-API-Key: $E2B_API_KEY" -H 'Content-Type: application/json' -d '{{"templateID":"base"}}'

Or by names, over TLS on the same port, instead of the two URLs:

  export E2B_DOMAIN={domain}
  eval "$(sudo firkin ca env{place})"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_is_shown_as_loopback() {
        let shown = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(shown("0.0.0.0:3000"), "127.0.0.1:3000");
        assert_eq!(shown("[::]:3000"), "[::1]:3000");
        assert_eq!(shown("198.51.100.7:80"), "198.51.100.7:80");
    }
}
