//! A sandbox's net namespace from outside: connections, listeners and an nginx in there.

use std::{
    fs::{self, File},
    io,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};

use super::{client::Sandbox, memory, server::Running};

const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(1);

/// The net namespace that a sandbox's machine lives in.
#[derive(Debug)]
pub(crate) struct Namespace {
    path: String,
}

// === impl Namespace ===

impl Namespace {
    pub(crate) fn of(sandbox: &Sandbox) -> anyhow::Result<Self> {
        Ok(Self { path: format!("/proc/{}/ns/net", memory::guest(sandbox)?) })
    }

    /// Runs this on a thread in there; a socket stays where it was made.
    fn inside<T: Send>(&self, make: impl FnOnce() -> io::Result<T> + Send) -> anyhow::Result<T> {
        let namespace = File::open(&self.path)?;
        let enter = || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            make()
        };
        let joined = thread::scope(|scope| scope.spawn(enter).join());
        Ok(joined.map_err(|_| anyhow::anyhow!("a thread in a sandbox's net namespace panicked"))??)
    }

    pub(crate) fn connect(&self, port: u16) -> anyhow::Result<TcpStream> {
        self.inside(|| TcpStream::connect(("127.0.0.1", port)))
    }

    pub(crate) fn listen(&self, port: u16) -> anyhow::Result<TcpListener> {
        self.inside(|| TcpListener::bind(("127.0.0.1", port)))
    }

    /// Starts an nginx in there with these `server` blocks, and waits until it listens on `port`.
    pub(crate) fn nginx(&self, home: &Path, port: u16, servers: &str) -> anyhow::Result<Running> {
        let home = home.join(format!("nginx-{port}"));
        fs::create_dir_all(&home)?;
        let configuration = home.join("nginx.conf");
        let text = format!(
            "user root; daemon off; worker_processes 2; pid {0}/pid; error_log {0}/log;\n\
             events {{}}\nhttp {{ access_log off; sendfile on; tcp_nodelay on; keepalive_requests 10000000;\n\
             client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi;\n\
             uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;\n{servers}\n}}\n",
            home.display()
        );
        fs::write(&configuration, text)?;
        let child = Command::new("nsenter")
            .arg(format!("--net={}", self.path))
            .args(["nginx", "-p"])
            .arg(&home)
            .arg("-c")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("nginx in a sandbox's net namespace needs nginx-light and nsenter")?;
        let running = Running(child);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if self.connect(port).is_ok() {
                return Ok(running);
            }
            thread::sleep(POLL);
        }
        bail!("nginx does not listen:\n{}", fs::read_to_string(home.join("log")).unwrap_or_default())
    }
}
