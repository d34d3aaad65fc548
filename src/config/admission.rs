//! The settings of admission: what sandboxes may have together, and who waits how long.

use std::time::Duration;

use super::{ConfigError, Sources, positive};

/// What sandboxes may have together, and who waits how long for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Sandboxes that run at the same time; none: no limit.
    pub max_sandboxes: Option<u32>,
    /// Virtual CPUs of running sandboxes for each of the host's, in hundredths; none: no limit.
    pub cpu_oversubscription: Option<u64>,
    /// Memory that sandboxes never get, in MiB; never less than a share of the host's.
    pub memory_reserve_mb: u32,
    /// True: a sandbox costs its whole limit. False: what it uses.
    pub charge_limit: bool,
    /// The least memory that a running sandbox costs, in MiB.
    pub memory_floor_mb: u32,
    /// Creates and resumes that may wait.
    pub queue: u32,
    /// How long one of them waits at most.
    pub patience: Duration,
    /// Free disk space, in MiB, below which nothing new is made.
    pub disk_floor_mb: u32,
    /// The same for machines that nobody has asked for yet.
    pub warm_disk_floor_mb: u32,
    /// Templates that are kept warm.
    pub warm: Vec<Warm>,
    /// How old a warm machine may become.
    pub warm_max_age: Duration,
}

/// A template that is kept warm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    /// The team's part of the name, if it has one.
    pub namespace: Option<String>,
    /// The name, or the id.
    pub name: String,
    /// The tag; none: the default one.
    pub tag: Option<String>,
    /// How many machines.
    pub depth: usize,
}

/// The most warm machines of one template.
const DEEPEST: usize = 64;
/// What is kept warm when nothing is said.
const WARM: &str = "base=4";

/// The keys, with their defaults.
pub(super) const KEYS: [(&str, &str); 11] = [
    ("max-sandboxes", "no limit"),
    ("cpu-oversubscription", "no limit"),
    ("memory-reserve-mb", "15 % of the host's memory"),
    ("memory-charge", "use"),
    ("memory-floor-mb", "8"),
    ("queue", "64"),
    ("queue-seconds", "30"),
    ("disk-floor-mb", "10240, at most 5 % of the disk"),
    ("warm-disk-floor-mb", "20480, at most 10 % of the disk"),
    ("warm", WARM),
    ("warm-max-age-minutes", "60"),
];

// === impl Admission ===

impl Admission {
    pub(super) fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let number = "a whole number, 0 or more";
        Ok(Self {
            max_sandboxes: sources.checked("max-sandboxes", positive)?,
            cpu_oversubscription: sources.checked("cpu-oversubscription", factor)?,
            memory_reserve_mb: sources.value("memory-reserve-mb", number)?.unwrap_or(0),
            charge_limit: sources.checked("memory-charge", charge)?.unwrap_or(false),
            memory_floor_mb: sources.checked("memory-floor-mb", positive)?.unwrap_or(8),
            queue: sources.value("queue", number)?.unwrap_or(64),
            patience: Duration::from_secs(sources.checked("queue-seconds", positive)?.unwrap_or(30).into()),
            disk_floor_mb: sources.value("disk-floor-mb", number)?.unwrap_or(10 << 10),
            warm_disk_floor_mb: sources.value("warm-disk-floor-mb", number)?.unwrap_or(20 << 10),
            warm: match sources.checked("warm", warm)? {
                Some(warm) => warm,
                None => warm(WARM).unwrap_or_default(),
            },
            warm_max_age: Duration::from_secs(
                60 * u64::from(sources.checked("warm-max-age-minutes", positive)?.unwrap_or(60)),
            ),
        })
    }
}

/// Hundredths.
fn factor(text: &str) -> Result<u64, &'static str> {
    let wanted = "a number of virtual CPUs for each CPU of the host, such as 4 or 1.5";
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let hundredths = match part.len() {
        1 => part.parse::<u64>().ok().map(|part| part * 10),
        2 => part.parse::<u64>().ok(),
        _ => None,
    };
    let factor = whole.parse::<u64>().ok().zip(hundredths);
    factor
        .and_then(|(whole, part)| whole.checked_mul(100)?.checked_add(part))
        .filter(|factor| (1..=10_000_000).contains(factor))
        .ok_or(wanted)
}

fn charge(text: &str) -> Result<bool, &'static str> {
    match text {
        "use" => Ok(false),
        "limit" => Ok(true),
        _ => Err("use or limit"),
    }
}

/// `none`, or `[team/]name[:tag]=depth` separated by commas; a template twice is a mistake.
fn warm(text: &str) -> Result<Vec<Warm>, &'static str> {
    if text.trim() == "none" {
        return Ok(Vec::new());
    }
    let templates: Option<Vec<Warm>> = text.split(',').map(|part| one_warm(part.trim())).collect();
    let known = |templates: &Vec<Warm>| {
        templates.iter().enumerate().all(|(place, one)| {
            templates[..place].iter().all(|other| Warm { depth: one.depth, ..other.clone() } != *one)
        })
    };
    templates.filter(known).ok_or(
        "none, or templates with the number of machines of each, such as base=4,team/name:tag=1 (at most 64)",
    )
}

fn one_warm(text: &str) -> Option<Warm> {
    let (template, depth) = text.split_once('=')?;
    let depth = depth.parse().ok().filter(|depth| *depth <= DEEPEST)?;
    let (path, tag) = template.split_once(':').map_or((template, None), |(path, tag)| (path, Some(tag)));
    let (namespace, name) = path.split_once('/').map_or((None, path), |(team, name)| (Some(team), name));
    let is_name = |text: &str, more: &[u8]| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || more.contains(&byte);
        !text.is_empty() && text.bytes().all(fits)
    };
    let fits = is_name(name, b"-_")
        && namespace.is_none_or(|team| is_name(team, b"-_"))
        && tag.is_none_or(|tag| is_name(tag, b"-_."));
    fits.then(|| Warm {
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
        tag: tag.map(str::to_owned),
        depth,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &[(&str, &str)]) -> Result<Admission, ConfigError> {
        let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Admission::load(&Sources::new(flags, []))
    }

    #[test]
    fn a_factor_has_up_to_two_decimals() {
        let factor = |text: &str| {
            load(&[("cpu-oversubscription", text)]).map(|admission| admission.cpu_oversubscription)
        };
        assert_eq!(factor("4").unwrap(), Some(400));
        assert_eq!(factor("1.5").unwrap(), Some(150));
        assert_eq!(factor("0.25").unwrap(), Some(25));
        for bad in ["0", "0.0", "-1", "+1.-5", "1.", ".5", "1.234", "x", "99999999999999999999"] {
            let error = factor(bad).unwrap_err().to_string();
            assert!(error.contains("--cpu-oversubscription"), "{bad}: {error}");
        }
    }

    #[test]
    fn memory_costs_its_use_unless_it_is_to_be_reserved() {
        assert!(!load(&[]).unwrap().charge_limit);
        assert!(load(&[("memory-charge", "limit")]).unwrap().charge_limit);
        assert!(load(&[("memory-charge", "most")]).is_err());
        assert_eq!(load(&[("queue", "0")]).unwrap().queue, 0, "nobody may wait");
        assert!(load(&[("queue-seconds", "0")]).is_err());
    }

    #[test]
    fn templates_are_kept_warm_by_name_and_depth() {
        let warm = |text: &str| load(&[("warm", text)]).map(|admission| admission.warm);
        assert_eq!(load(&[]).unwrap().warm, warm("base=4").unwrap());
        assert_eq!(warm("none").unwrap(), []);
        let two = warm("base=1, team/my_app:v1.2=64").unwrap();
        assert_eq!((two[0].name.as_str(), two[0].depth, &two[0].namespace), ("base", 1, &None));
        assert_eq!((two[1].namespace.as_deref(), two[1].tag.as_deref()), (Some("team"), Some("v1.2")));
        for bad in
            ["", "base", "base=", "base=x", "base=65", "=1", "a/b/c=1", "Base=1", "base=1,base=2", "base:=1"]
        {
            assert!(warm(bad).unwrap_err().to_string().contains("--warm"), "{bad}");
        }
    }
}
