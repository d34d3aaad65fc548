//! `firkin ca`: makes programs of this machine trust the server's development authority.

use std::{
    fmt::Write as _,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, ExitCode},
};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use sha2::{Digest as _, Sha256};

use crate::{
    app::tls,
    cli::{note, say},
    config::Config,
};

/// Where `ca env` puts its files: programs of every user must be able to read them.
const SHARED_DIR: &str = "/etc/firkin/ca";
/// Where systems keep all authorities they trust, as one PEM file.
pub(super) const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Where systems take more authorities from, and what makes them do it.
const STORES: &[(&str, &str)] = &[
    ("/usr/local/share/ca-certificates", "update-ca-certificates"),
    ("/etc/pki/ca-trust/source/anchors", "update-ca-trust"),
];

/// What can be done with the authority.
#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Print the authority's certificate as PEM
    Export,
    /// Print lines that make Python and Node trust the server: eval "$(sudo firkin ca env)"
    ///
    /// Writes the certificate, and a bundle of it with what the system trusts already, to files
    /// that every user can read.
    Env {
        /// Where to write the files
        #[arg(long, value_name = "DIR", default_value = SHARED_DIR)]
        dir: PathBuf,
    },
    /// Make this system trust the server (as root)
    Install,
}

pub(super) fn run(command: CaCommand, config: &Config) -> anyhow::Result<ExitCode> {
    let certificate = certificate(&config.storage.data_dir)?;
    if config.network.tls.is_some() {
        note("firkin: the server is configured with tls-cert and does not use this authority");
    }
    match command {
        CaCommand::Export => say(certificate.trim_end()),
        CaCommand::Env { dir } => {
            let system = BUNDLES.iter().find_map(|path| fs::read_to_string(path).ok());
            if system.is_none() {
                note(
                    "firkin: this system has no list of authorities; programs with these lines trust firkin only",
                );
            }
            say(&environment(&certificate, system.as_deref().unwrap_or_default(), &dir)?);
        }
        CaCommand::Install => install(&certificate)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn certificate(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("gateway").join(tls::CERTIFICATE);
    fs::read_to_string(&path).with_context(|| {
        let advice = match path.try_exists() {
            Ok(false) => "start the server once: its first start makes the authority (without --tls-cert)",
            _ => "run this as root: sudo firkin ca ...",
        };
        format!("cannot read {}; {advice}", path.display())
    })
}

/// Writes both files and gives the lines that name them.
fn environment(certificate: &str, system: &str, dir: &Path) -> anyhow::Result<String> {
    let dir = std::path::absolute(dir)?;
    fs::create_dir_all(&dir)
        .with_context(|| format!("cannot make {}; choose another --dir", dir.display()))?;
    let mut bundle = system.to_owned();
    if !bundle.is_empty() && !bundle.ends_with('\n') {
        bundle.push('\n');
    }
    bundle.push_str(certificate);
    let mut lines = String::new();
    // Named by their authority, so that several servers' files live side by side.
    let name = name(certificate);
    for (variable, kind, text) in
        [("SSL_CERT_FILE", "bundle", bundle.as_str()), ("NODE_EXTRA_CA_CERTS", "ca", certificate)]
    {
        let path = dir.join(format!("{kind}-{name}.pem"));
        publish(&path, text)
            .with_context(|| format!("cannot write {}; choose another --dir", path.display()))?;
        writeln!(lines, "export {variable}={}", quoted(&path.display().to_string()))?;
    }
    lines.pop();
    Ok(lines)
}

fn install(certificate: &str) -> anyhow::Result<()> {
    if cfg!(target_os = "macos") {
        bail!(
            "on macOS: firkin ca export > firkin-ca.pem && sudo security add-trusted-cert -d -r trustRoot \
             -k /Library/Keychains/System.keychain firkin-ca.pem"
        );
    }
    let Some((dir, command)) = STORES.iter().find(|(dir, _)| Path::new(dir).is_dir()) else {
        bail!("this system keeps its authorities in a place unknown to firkin; use `firkin ca export`");
    };
    let path = Path::new(dir).join(format!("firkin-{}.crt", name(certificate)));
    publish(&path, certificate)
        .with_context(|| format!("cannot write {}; run `sudo firkin ca install`", path.display()))?;
    let status = process::Command::new(command)
        .status()
        .with_context(|| format!("cannot run {command}; install it"))?;
    if !status.success() {
        bail!("{command} failed ({status}); the certificate is at {}", path.display());
    }
    say(&format!(
        "this system trusts {}; Node and Firefox keep lists of their own: `firkin ca env`",
        path.display()
    ));
    Ok(())
}

/// Eight characters that differ between authorities.
fn name(certificate: &str) -> String {
    hex::encode(&Sha256::digest(certificate)[..4])
}

/// Readable for all, and whole at every moment.
fn publish(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o644))?;
    fs::rename(&fresh, path)
}

/// As a word of a POSIX shell.
fn quoted(text: &str) -> String {
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte)) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_name_files_for_everybody() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("it's here");
        let lines = environment("OURS\n", "SYSTEM", &dir).unwrap();
        let shell = format!("{lines}\ncat \"$SSL_CERT_FILE\"; stat -c %a \"$NODE_EXTRA_CA_CERTS\"");
        let output = process::Command::new("sh").args(["-c", &shell]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "SYSTEM\nOURS\n644\n", "{output:?}");
        assert_eq!(environment("OURS\n", "SYSTEM", &dir).unwrap(), lines, "again at will");
    }

    #[test]
    fn without_an_authority_the_message_says_what_makes_one() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("gateway")).unwrap();
        let error = format!("{:#}", certificate(home.path()).unwrap_err());
        assert!(error.contains("start the server once"), "{error}");
        fs::write(home.path().join("gateway").join(tls::CERTIFICATE), "PEM").unwrap();
        assert_eq!(certificate(home.path()).unwrap(), "PEM");
    }
}
