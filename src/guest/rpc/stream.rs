//! One client's view of a process: start, then output and keepalives, then the end.

use std::time::Duration;

use connectrpc::ConnectError;
use futures_util::stream::{self, Stream};
use http::HeaderMap;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{deadline::expired, told::Told};
use crate::{
    guest::{awake, process::Message},
    wire::rpc::process::{
        __buffa::oneof::process_event::Event,
        ProcessEvent,
        process_event::{KeepAlive, StartEvent},
    },
};

const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(90);
const KEEPALIVE_HEADER: &str = "keepalive-ping-interval";

/// Longer pauses than this are no keepalive, and the clock has an end.
const MAX_KEEPALIVE: Duration = Duration::from_hours(24);

/// How often an idle stream shows that it lives: the header's seconds, or 90.
pub(super) fn keepalive(headers: &HeaderMap) -> Duration {
    headers
        .get(KEEPALIVE_HEADER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .filter(|seconds| *seconds > 0)
        .map_or(DEFAULT_KEEPALIVE, |seconds| Duration::from_secs(seconds).min(MAX_KEEPALIVE))
}

struct View {
    pid: u32,
    messages: mpsc::Receiver<Message>,
    deadline: Option<Instant>,
    keepalive: Duration,
    stage: Stage,
}

enum Stage {
    Start,
    Running,
    Over,
}

/// The events in their order. After the end, or the deadline's error, there is nothing more.
pub(super) fn events(
    pid: u32,
    messages: mpsc::Receiver<Message>,
    deadline: Option<Instant>,
    keepalive: Duration,
) -> impl Stream<Item = Result<Told, ConnectError>> + Send {
    let view = View { pid, messages, deadline, keepalive, stage: Stage::Start };
    stream::unfold(view, |mut view| async move {
        let told = match view.stage {
            Stage::Start => {
                view.stage = Stage::Running;
                Ok(told(StartEvent { pid: view.pid, ..StartEvent::default() }))
            }
            Stage::Running => view.next().await,
            Stage::Over => return None,
        };
        Some((told, view))
    })
}

// === impl View ===

impl View {
    async fn next(&mut self) -> Result<Told, ConnectError> {
        // Output puts the keepalive off, so its timer starts anew with every event.
        let keepalive = Instant::now() + self.keepalive;
        let deadline = self.deadline;
        tokio::select! {
            biased;
            () = awake::expiry(deadline) => {
                self.stage = Stage::Over;
                Err(expired())
            }
            message = self.messages.recv() => match message {
                Some(Message::Data(source, bytes)) => Ok(Told::Output(source, bytes)),
                Some(Message::End(end)) => {
                    self.stage = Stage::Over;
                    Ok(told(end))
                }
                None => {
                    self.stage = Stage::Over;
                    Err(ConnectError::internal("the process's output ended without its exit"))
                }
            },
            () = sleep_until(keepalive) => Ok(told(KeepAlive::default())),
        }
    }
}

fn told(event: impl Into<Event>) -> Told {
    Told::Event(ProcessEvent { event: Some(event.into()), ..ProcessEvent::default() })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[test]
    fn the_keepalive_header_is_seconds() {
        let with = |value: &str| {
            keepalive(&HeaderMap::from_iter([(
                http::HeaderName::from_static(KEEPALIVE_HEADER),
                value.parse().unwrap(),
            )]))
        };
        assert_eq!(with("50"), Duration::from_secs(50));
        assert_eq!(with("18446744073709551615"), MAX_KEEPALIVE);
        for bad in ["", "x", "-1", "0", "1.5"] {
            assert_eq!(with(bad), DEFAULT_KEEPALIVE, "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_is_kept_alive_until_its_deadline() {
        let (_sender, messages) = mpsc::channel(1);
        let deadline = Some(Instant::now() + Duration::from_mins(2));
        let mut events = Box::pin(events(7, messages, deadline, Duration::from_secs(50)));
        let kind = |event: Option<Result<Told, ConnectError>>| match event.unwrap() {
            Ok(Told::Event(ProcessEvent { event: Some(Event::Start(start)), .. })) => {
                format!("start {}", start.pid)
            }
            Ok(Told::Event(ProcessEvent { event: Some(Event::Keepalive(_)), .. })) => "keepalive".to_owned(),
            Ok(_) => "other".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(kind(events.next().await), "start 7");
        assert_eq!(kind(events.next().await), "keepalive");
        assert_eq!(kind(events.next().await), "keepalive");
        assert!(kind(events.next().await).contains("context deadline exceeded"));
        assert!(events.next().await.is_none());
    }
}
