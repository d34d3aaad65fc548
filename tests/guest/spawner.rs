//! The spawner's promises: the guest reaps what it makes, and a killed spawner is replaced.

use std::{fs, process::Command};

use super::agent::{Agent, ended, output};

fn children(pid: u32) -> Vec<(u32, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let name =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    text.split_whitespace().map(|word| word.parse().unwrap()).map(|pid| (pid, name(&pid))).collect()
}

#[test]
fn processes_are_the_guests_children_and_reaped_by_it() {
    let agent = Agent::start();
    let events = agent.shell("echo $PPID", &[]);
    assert_eq!(output(&events, "stdout"), format!("{}\n", agent.pid()));
    for _ in 0..20 {
        // An orphan ends soon after its parent.
        assert_eq!(ended(&agent.shell("(true &)", &[]))["exited"], true);
    }
    let zombies = children(agent.pid())
        .into_iter()
        .filter(|(pid, _)| {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
        })
        .count();
    assert!(zombies <= 1, "one may have ended this instant");
}

#[test]
fn a_killed_spawner_is_replaced_by_the_next_start() {
    let agent = Agent::start();
    let spawner = |agent: &Agent| {
        children(agent.pid()).into_iter().find(|(_, name)| name == "firkin-spawner").map(|(pid, _)| pid)
    };
    assert_eq!(output(&agent.shell("echo one", &[]), "stdout"), "one\n");
    let first = spawner(&agent).unwrap();
    assert!(Command::new("kill").args(["-9", &first.to_string()]).status().unwrap().success());
    assert_eq!(output(&agent.shell("echo two", &[]), "stdout"), "two\n");
    assert_ne!(spawner(&agent).unwrap(), first);
}
