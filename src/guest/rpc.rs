//! The `process.Process` service: from messages to [`Processes`] and back, with Connect's codes.
//!
//! Which error has which code is the contract's (sandbox 3); everything else is decided below.

use std::{io, path::Path, sync::Arc};

use connectrpc::{
    ConnectError, Encodable, ErrorCode, InboundStream, RequestContext, Response, ServiceRequest,
    ServiceResult, ServiceStream,
};
use futures_util::StreamExt as _;
use nix::sys::signal::Signal;

use crate::{
    guest::{
        paths,
        process::{Config, InputError, Launch, Process, Processes, Selector, StartError},
        pty::Size,
        state::Guest,
    },
    wire::rpc::process::{
        self as proto,
        __buffa::oneof::{process_input, process_selector, stream_input_request},
        CloseStdinRequest, CloseStdinResponse, ConnectRequest, ConnectResponse, ListRequest, ListResponse,
        PTY, ProcessConfig, ProcessInfo, ProcessInput, ProcessSelector, SendInputRequest, SendInputResponse,
        SendSignalRequest, SendSignalResponse, StartRequest, StartResponse, StreamInputRequest,
        StreamInputResponse, UpdateRequest, UpdateResponse,
    },
};

mod deadline;
mod kind;
mod stream;
mod told;

pub(crate) use deadline::{StreamDeadline, expired, moderate};
pub(crate) use kind::of_its_kind;

/// The service object.
#[derive(Debug, Clone)]
pub(crate) struct ProcessService {
    guest: Guest,
    processes: Processes,
}

// === impl ProcessService ===

impl ProcessService {
    /// Serves these processes.
    pub(crate) fn new(guest: Guest, processes: Processes) -> Self {
        Self { guest, processes }
    }

    fn live(&self, selector: &ProcessSelector) -> Result<Arc<Process>, ConnectError> {
        let selector = selected(selector)?;
        self.processes.live(&selector).ok_or_else(|| not_found(&selector))
    }

    fn launch(&self, ctx: &RequestContext, request: StartRequest) -> Result<Launch, ConnectError> {
        let user = self.guest.request_user(ctx.extensions())?;
        self.guest.gate().admit_process().map_err(ConnectError::failed_precondition)?;
        let config = request.process.into_option().unwrap_or_default();
        let named = config.cwd.as_deref().unwrap_or_default();
        let cwd = paths::resolve(named, &user, self.guest.default_workdir().as_deref())
            .map_err(|error| ConnectError::invalid_argument(error.to_string()))?;
        check_cwd(&cwd)?;
        let config = Config {
            cmd: config.cmd,
            args: config.args,
            envs: config.envs.into_iter().collect(),
            cwd: config.cwd,
        };
        Ok(Launch {
            config,
            tag: request.tag,
            user,
            cwd: cwd.to_string_lossy().into_owned(),
            globals: self.guest.envs(),
            pty: request.pty.into_option().map(size),
            // Absent means yes (contract/sandbox 1.1).
            stdin: request.stdin.unwrap_or(true),
            deadline: StreamDeadline::of(ctx),
        })
    }
}

impl proto::Process for ProcessService {
    async fn list<'a>(
        &'a self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<impl Encodable<ListResponse> + Send + use<'a>> {
        let processes = self.processes.list().iter().map(|process| info(process)).collect();
        Response::ok(ListResponse { processes, ..ListResponse::default() })
    }

    async fn start(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StartRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<StartResponse> + Send + use<>>> {
        let launch = self.launch(&ctx, request.to_owned_message())?;
        let deadline = launch.deadline;
        self.guest.refresh_meminfo();
        let processes = self.processes.clone();
        // A task of its own: a client that hangs up now must not leave a process without owner.
        let started = tokio::spawn(async move { processes.start(launch).await })
            .await
            .map_err(|error| ConnectError::internal(format!("error starting process: {error}")))?
            .map_err(|error| start_failed(&error))?;
        let (process, messages) = started;
        let events = stream::events(process.pid, messages, deadline, stream::keepalive(ctx.headers()));
        Response::stream_ok(events)
    }

    async fn connect(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ConnectRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ConnectResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        let selector = selected(&request.process)?;
        let process = self.processes.any(&selector).ok_or_else(|| not_found(&selector))?;
        let deadline = StreamDeadline::of(&ctx);
        let events =
            stream::events(process.pid, process.subscribe(), deadline, stream::keepalive(ctx.headers()));
        Response::stream_ok(events)
    }

    async fn update<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, UpdateRequest>,
    ) -> ServiceResult<impl Encodable<UpdateResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.live(&request.process)?;
        if let Some(pty) = request.pty.into_option() {
            process.input.resize(size(pty)).map_err(|error| input_failed(&error))?;
        }
        Response::ok(UpdateResponse::default())
    }

    async fn stream_input(
        &self,
        _ctx: RequestContext,
        mut requests: InboundStream<StreamInputRequest>,
    ) -> ServiceResult<impl Encodable<StreamInputResponse> + Send + use<'_>> {
        use stream_input_request::Event;
        let mut process = None;
        while let Some(request) = requests.next().await {
            let request =
                request.map_err(|error| ConnectError::unknown(error.to_string()))?.to_owned_message();
            match (request.event, &process) {
                (Some(Event::Start(start)), _) => process = Some(self.live(&start.process)?),
                (Some(Event::Data(data)), Some(process)) => give(process, &data.input).await?,
                (Some(Event::Data(_)), None) => {
                    return Err(ConnectError::invalid_argument(
                        "the first message must name the process: send start",
                    ));
                }
                (Some(Event::Keepalive(_)), _) => {}
                (None, _) => return Err(ConnectError::unimplemented("invalid event type <nil>")),
            }
        }
        Response::ok(StreamInputResponse::default())
    }

    async fn send_input<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, SendInputRequest>,
    ) -> ServiceResult<impl Encodable<SendInputResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.live(&request.process)?;
        give(&process, &request.input).await?;
        Response::ok(SendInputResponse::default())
    }

    async fn send_signal<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, SendSignalRequest>,
    ) -> ServiceResult<impl Encodable<SendSignalResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.live(&request.process)?;
        let signal = match request.signal.to_i32() {
            9 => Signal::SIGKILL,
            15 => Signal::SIGTERM,
            other => {
                return Err(ConnectError::unimplemented(format!(
                    "invalid signal: {other}; only SIGKILL and SIGTERM can be sent"
                )));
            }
        };
        self.processes
            .signal(&process, signal)
            .map_err(|errno| ConnectError::internal(format!("error sending signal: {errno}")))?;
        Response::ok(SendSignalResponse::default())
    }

    async fn close_stdin<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, CloseStdinRequest>,
    ) -> ServiceResult<impl Encodable<CloseStdinResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.live(&request.process)?;
        process.input.close().map_err(|error| input_failed(&error))?;
        Response::ok(CloseStdinResponse::default())
    }
}

/// Only whether it is there; what else may be wrong the new process finds out, as the user.
fn check_cwd(cwd: &Path) -> Result<(), ConnectError> {
    match std::fs::metadata(cwd) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(ConnectError::invalid_argument(format!("cwd '{}' does not exist", cwd.display())))
        }
        _ => Ok(()),
    }
}

async fn give(process: &Process, input: &ProcessInput) -> Result<(), ConnectError> {
    use process_input::Input;
    match &input.input {
        Some(Input::Stdin(bytes)) => process.input.write_stdin(bytes).await,
        Some(Input::Pty(bytes)) => process.input.write_tty(bytes).await,
        None => return Err(ConnectError::unimplemented("invalid input type <nil>")),
    }
    .map_err(|error| input_failed(&error))
}

fn selected(selector: &ProcessSelector) -> Result<Selector, ConnectError> {
    match &selector.selector {
        Some(process_selector::Selector::Pid(pid)) => Ok(Selector::Pid(*pid)),
        Some(process_selector::Selector::Tag(tag)) => Ok(Selector::Tag(tag.clone())),
        None => Err(ConnectError::unimplemented("invalid input type <nil>: select a process by pid or tag")),
    }
}

fn not_found(selector: &Selector) -> ConnectError {
    ConnectError::not_found(match selector {
        Selector::Pid(pid) => format!("process with pid {pid} not found"),
        Selector::Tag(tag) => format!("process with tag {tag} not found"),
    })
}

fn input_failed(error: &InputError) -> ConnectError {
    let code = match error {
        InputError::CloseTty => ErrorCode::Unknown,
        _ => ErrorCode::Internal,
    };
    ConnectError::new(code, error.to_string())
}

fn start_failed(error: &StartError) -> ConnectError {
    let code = if error.is_exhaustion() {
        ErrorCode::ResourceExhausted
    } else if error.is_request() {
        ErrorCode::InvalidArgument
    } else {
        ErrorCode::Internal
    };
    ConnectError::new(code, error.to_string())
}

/// Numbers beyond the kernel's are cut (contract/sandbox 3).
#[expect(clippy::cast_possible_truncation, reason = "the contract's rule")]
fn size(pty: PTY) -> Size {
    let size = pty.size.into_option().unwrap_or_default();
    Size { cols: size.cols as u16, rows: size.rows as u16 }
}

fn info(process: &Process) -> ProcessInfo {
    let config = ProcessConfig {
        cmd: process.config.cmd.clone(),
        args: process.config.args.clone(),
        envs: process.config.envs.clone().into_iter().collect(),
        cwd: process.config.cwd.clone(),
        ..ProcessConfig::default()
    };
    ProcessInfo {
        config: config.into(),
        pid: process.pid,
        tag: process.tag.clone(),
        ..ProcessInfo::default()
    }
}
