//! The tasks that a server cannot do without: one that ends before it was told to stops the server.
//!
//! A task that panics takes only itself along. The server would go on without its listener, alive
//! for whoever watches the process and dead for every client; so each end is waited for.

use std::future::Future;

use anyhow::{Context as _, anyhow};
use tokio::task::{JoinError, JoinHandle};

/// Tasks by name. Dropping this ends none of them.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    running: Vec<Task>,
}

#[derive(Debug)]
struct Task {
    name: &'static str,
    handle: JoinHandle<anyhow::Result<()>>,
}

// === impl Tasks ===

impl Tasks {
    /// Starts a task; `name` is what a message calls it.
    pub(super) fn spawn<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.running.push(Task { name, handle: tokio::spawn(task) });
    }

    /// Waits for the first task that ends, and says which one and why. Waits for ever where there is
    /// none. Losing interest in the answer loses no task.
    pub(super) async fn first_end(&mut self) -> anyhow::Error {
        if self.running.is_empty() {
            return std::future::pending().await;
        }
        let handles = self.running.iter_mut().map(|task| &mut task.handle);
        let (ended, at, _) = futures_util::future::select_all(handles).await;
        let name = self.running.swap_remove(at).name;
        match outcome(name, ended) {
            Ok(()) => anyhow!("the {name} ended though nobody had asked it to"),
            Err(error) => error,
        }
    }

    /// Waits for the tasks that are left; gives the first error after all have ended.
    pub(super) async fn finish(self) -> anyhow::Result<()> {
        let mut all = Ok(());
        for Task { name, handle } in self.running {
            let ended = outcome(name, handle.await);
            all = all.and(ended);
        }
        all
    }
}

fn outcome(name: &str, ended: Result<anyhow::Result<()>, JoinError>) -> anyhow::Result<()> {
    ended.map_err(anyhow::Error::from).and_then(|result| result).with_context(|| format!("the {name} failed"))
}

#[cfg(test)]
mod tests {
    use std::{future::pending, io};

    use tokio::sync::oneshot;
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn lasting() -> Tasks {
        let mut tasks = Tasks::default();
        tasks.spawn("keeper", pending());
        tasks
    }

    #[tokio::test]
    async fn a_task_that_panics_is_named_with_its_words() {
        let mut tasks = lasting();
        tasks.spawn("listener", async { panic!("no more sockets") });
        let text = format!("{:#}", tasks.first_end().await);
        assert!(text.starts_with("the listener failed: ") && text.contains("no more sockets"), "{text}");
    }

    #[tokio::test]
    async fn a_task_that_fails_or_ends_for_no_reason_is_told_too() {
        let mut tasks = lasting();
        tasks.spawn("admin socket", async { Err(io::Error::from(io::ErrorKind::BrokenPipe).into()) });
        assert_eq!(format!("{:#}", tasks.first_end().await), "the admin socket failed: broken pipe");
        tasks.spawn("listener", async { Ok(()) });
        let text = tasks.first_end().await.to_string();
        assert_eq!(text, "the listener ended though nobody had asked it to");
    }

    #[tokio::test]
    async fn what_goes_on_is_waited_for_and_survives_a_lost_interest() {
        let stop = CancellationToken::new();
        let (tell, told) = oneshot::channel();
        let (mut tasks, stopped) = (Tasks::default(), stop.clone());
        tasks.spawn("listener", async move {
            stopped.cancelled().await;
            let _ = tell.send(());
            Ok(())
        });
        tokio::select! {
            biased;
            error = tasks.first_end() => panic!("{error}"),
            () = tokio::task::yield_now() => {}
        }
        stop.cancel();
        tasks.finish().await.unwrap();
        told.await.unwrap();
    }

    #[tokio::test]
    async fn an_error_on_the_way_down_is_given_after_all_have_ended() {
        let (tell, told) = oneshot::channel();
        let mut tasks = Tasks::default();
        tasks.spawn("listener", async { panic!("late") });
        tasks.spawn("admin socket", async move {
            let _ = tell.send(());
            Ok(())
        });
        let text = format!("{:#}", tasks.finish().await.unwrap_err());
        assert!(text.contains("listener") && text.contains("late"), "{text}");
        told.await.unwrap();
    }
}
