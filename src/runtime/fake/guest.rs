//! The miniature guest of a fake machine: the link's far half, the control stream, its services.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncWriteExt as _, WriteHalf, split},
    sync::mpsc,
    time::timeout,
};
use tokio_util::{
    codec::{FramedRead, LengthDelimitedCodec},
    sync::CancellationToken,
};

use super::{Faults, machine::Body};
use crate::{
    runtime::{
        link::{LinkStream, read_line},
        mux::{Mux, MuxStream},
    },
    sandbox::freshness::{Freshness, Phase, Verdict},
    wire::{
        control::{FromGuest, Init, MAX_MESSAGE, ToGuest},
        link::{Answer, GENERATION, HANDSHAKE_TIMEOUT, Hello},
    },
};

const LOG_QUEUE: usize = 1024;

/// What a guest knows and has seen, for a test to look at.
#[derive(Debug, Clone, Default)]
pub struct GuestView {
    /// The last init.
    pub init: Option<Init>,
    /// How many control streams were opened.
    pub attachments: u32,
    /// The nonce of each, in hex, in order.
    pub nonces: Vec<String>,
    /// How many freeze notices came.
    pub freezes: u32,
    /// The gate, if its first init came with one.
    pub gate: Option<Freshness>,
}

/// The guest's state.
#[derive(Default)]
pub(super) struct Guest {
    view: Mutex<GuestView>,
    attachment: Mutex<Option<Attachment>>,
}

struct Attachment {
    replaced: CancellationToken,
    logs: mpsc::Sender<FromGuest>,
}

// === impl Guest ===

impl Guest {
    pub(super) fn view(&self) -> GuestView {
        self.view.lock().clone()
    }

    pub(super) fn log(&self, message: &str) -> bool {
        let line = FromGuest::Log {
            level: "info".to_owned(),
            logger: "envd".to_owned(),
            message: message.to_owned(),
            fields: BTreeMap::new(),
            unix_ns: 0,
        };
        self.attachment.lock().as_ref().is_some_and(|attachment| attachment.logs.try_send(line).is_ok())
    }

    /// Begins an attachment; an earlier one ends.
    fn attach(&self, nonce: &str) -> (CancellationToken, mpsc::Receiver<FromGuest>) {
        let (logs, lines) = mpsc::channel(LOG_QUEUE);
        let replaced = CancellationToken::new();
        let attachment = Attachment { replaced: replaced.clone(), logs };
        if let Some(earlier) = self.attachment.lock().replace(attachment) {
            earlier.replaced.cancel();
        }
        let mut view = self.view.lock();
        view.attachments += 1;
        view.nonces.push(nonce.to_owned());
        (replaced, lines)
    }

    /// Without a task of its own: what is said of the gate is what it is.
    fn judge(&self, view: &mut GuestView, verdict: Verdict) -> Option<String> {
        let Some(gate) = &mut view.gate else { return Some("no gate".to_owned()) };
        match verdict {
            Verdict::Complete { target } => {
                gate.target = target.unwrap_or_else(|| gate.target.clone());
                (gate.phase, gate.reason) = (Phase::Ready, None);
            }
            Verdict::Fail { reason } => (gate.phase, gate.reason) = (Phase::Failed, Some(reason)),
            Verdict::Run => (gate.phase, gate.reason) = (Phase::Syncing, None),
        }
        self.tell_gate(view);
        None
    }

    fn tell_gate(&self, view: &GuestView) {
        if let (Some(gate), Some(attachment)) = (&view.gate, &*self.attachment.lock()) {
            let freshness = Box::new(gate.clone());
            // A full queue is a test's own doing.
            let _ = attachment.logs.try_send(FromGuest::Freshness { freshness });
        }
    }

    fn obey(&self, message: ToGuest, faults: &Faults) -> FromGuest {
        let mut view = self.view.lock();
        let (seq, error) = match message {
            ToGuest::Init { seq, init } => {
                view.gate = view.gate.take().or_else(|| init.freshness.as_deref().cloned());
                self.tell_gate(&view);
                view.init = Some(*init);
                (seq, faults.init_error.clone())
            }
            ToGuest::Freeze { seq } => {
                view.freezes += 1;
                (seq, None)
            }
            ToGuest::Thaw { seq, .. } | ToGuest::Ping { seq } | ToGuest::Disk { seq, .. } => (seq, None),
            ToGuest::Freshness { seq, verdict } => (seq, self.judge(&mut view, verdict)),
        };
        FromGuest::Done { seq, error }
    }
}

/// Answers the streams of one connection until it or the machine ends.
pub(super) async fn serve(body: Arc<Body>, mux: Mux) {
    let accepting = async {
        while let Some(stream) = mux.accept().await {
            let body = Arc::clone(&body);
            tokio::spawn(async move {
                let ended = body.ended.clone();
                ended.run_until_cancelled(one(&body, stream)).await;
            });
        }
    };
    body.ended.run_until_cancelled(accepting).await;
}

async fn one(body: &Arc<Body>, mut stream: MuxStream) {
    body.thawed().await;
    let Some(host) = body.host.upgrade() else { return };
    let Ok(Ok(line)) = timeout(HANDSHAKE_TIMEOUT, read_line(&mut stream)).await else { return };
    let faults = host.faults();
    if faults.answer_delay > Duration::ZERO {
        tokio::time::sleep(faults.answer_delay).await;
    }
    let hello = Hello::parse(&line);
    let service = match hello {
        Ok(Hello::Connect { port }) => host.service(port),
        _ => None,
    };
    drop(host);
    match (hello, service) {
        (Ok(Hello::Connect { .. }), Some(service)) => {
            if answer(&mut stream, Answer::Ok).await {
                service.run(body, Box::new(stream) as LinkStream).await;
            }
        }
        (Ok(Hello::Connect { .. }), None) => {
            answer(&mut stream, Answer::Err("port closed".to_owned())).await;
        }
        (Ok(Hello::Control { generation, nonce }), _) => {
            let (replaced, lines) = body.guest.attach(&hex::encode(nonce.0));
            let generation = generation.min(GENERATION);
            if answer(&mut stream, Answer::OkControl { generation }).await {
                replaced.run_until_cancelled(control(body, stream, lines)).await;
            }
        }
        (Err(malformed), _) => {
            answer(&mut stream, Answer::Err(malformed.to_string())).await;
        }
    }
}

async fn answer(stream: &mut MuxStream, answer: Answer) -> bool {
    let refused = matches!(answer, Answer::Err(_));
    let sent = stream.write_all(answer.encode().as_bytes()).await.is_ok() && stream.flush().await.is_ok();
    if refused {
        let _ = stream.shutdown().await;
    }
    sent
}

/// One attachment: obeys, answers, and passes the log on.
async fn control(body: &Arc<Body>, stream: MuxStream, mut lines: mpsc::Receiver<FromGuest>) {
    let (reader, mut writer) = split(stream);
    let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_MESSAGE as usize).new_codec();
    let mut frames = FramedRead::new(reader, codec);
    loop {
        let message = tokio::select! {
            frame = frames.next() => {
                let Some(Ok(frame)) = frame else { return };
                body.thawed().await;
                let Ok(message) = serde_json::from_slice::<ToGuest>(&frame) else { return };
                let Some(host) = body.host.upgrade() else { return };
                let faults = host.faults();
                if faults.mute {
                    continue;
                }
                body.guest.obey(message, &faults)
            }
            Some(line) = lines.recv() => line,
        };
        if !say(&mut writer, &message).await {
            return;
        }
    }
}

async fn say(writer: &mut WriteHalf<MuxStream>, message: &FromGuest) -> bool {
    let Ok(json) = serde_json::to_vec(message) else { return false };
    let Ok(length) = u32::try_from(json.len()) else { return false };
    let frame = Bytes::from([length.to_be_bytes().as_slice(), &json].concat());
    writer.write_all(&frame).await.is_ok() && writer.flush().await.is_ok()
}
