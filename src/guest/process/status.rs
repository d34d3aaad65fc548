//! How an exit is told: Go's words, because envd is a Go program (contract/sandbox 3).

use crate::guest::reap::Exit;
use crate::wire::{rpc::process::process_event::EndEvent, signals::SIGNALS};

/// The last event of a process.
pub(super) fn end_event(exit: Exit) -> EndEvent {
    let (exit_code, exited, status) = match exit {
        Exit::Code(code) => (code, true, format!("exit status {code}")),
        Exit::Signal { number, core } => {
            let core = if core { " (core dumped)" } else { "" };
            (-1, false, format!("signal: {}{core}", signal_name(number)))
        }
    };
    let error = (exit_code != 0).then(|| status.clone());
    EndEvent { exit_code, exited, status, error, ..EndEvent::default() }
}

fn signal_name(number: i32) -> String {
    usize::try_from(number - 1)
        .ok()
        .and_then(|index| SIGNALS.get(index))
        .map_or_else(|| format!("signal {number}"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_read_like_gos() {
        let told = |exit| {
            let event = end_event(exit);
            (event.exit_code, event.exited, event.status, event.error)
        };
        assert_eq!(told(Exit::Code(0)), (0, true, "exit status 0".to_owned(), None));
        let three = "exit status 3".to_owned();
        assert_eq!(told(Exit::Code(3)), (3, true, three.clone(), Some(three)));
        for (number, core, text) in [
            (9, false, "signal: killed"),
            (15, false, "signal: terminated"),
            (11, true, "signal: segmentation fault (core dumped)"),
            (34, false, "signal: signal 34"),
        ] {
            let text = text.to_owned();
            assert_eq!(told(Exit::Signal { number, core }), (-1, false, text.clone(), Some(text)));
        }
    }
}
