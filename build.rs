//! Two things that must exist before the crate compiles: the RPC types of the guest, and the
//! guest binaries that the gateway embeds.

#[cfg(feature = "gateway")]
use std::path::{Path, PathBuf};
use std::{env, error::Error};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "guest")]
    generate_rpc()?;
    #[cfg(feature = "gateway")]
    embed_guest()?;
    let _ = env::var_os("OUT_DIR");
    Ok(())
}

/// Generates messages and service traits from `openapi/envd`, without protoc.
#[cfg(feature = "guest")]
fn generate_rpc() -> Result<(), Box<dyn Error>> {
    use prost::Message as _;

    let protos = ["process.proto", "filesystem.proto"];
    println!("cargo::rerun-if-changed=openapi/envd");
    let set = protox::compile(protos, ["openapi/envd"])?;
    let descriptor = std::path::PathBuf::from(env::var("OUT_DIR")?).join("envd.binpb");
    std::fs::write(&descriptor, set.encode_to_vec())?;
    connectrpc_build::Config::new()
        .descriptor_set(&descriptor)
        .files(&protos)
        .gate_client_feature(true)
        .client_feature_name("rpc-client")
        .include_file("envd_rpc.rs")
        .compile()?;
    Ok(())
}

/// Points the crate at the guest binaries, or at empty files where they are not built yet:
/// checks and unit tests need none, and `serve` says plainly when it carries no guest.
#[cfg(feature = "gateway")]
fn embed_guest() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=FIRKIN_GUEST_DIR");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let dir = env::var_os("FIRKIN_GUEST_DIR")
        .map_or_else(|| root.join(format!("target/guest/{arch}-unknown-linux-gnu/guest")), PathBuf::from);
    for (name, variable) in [("firkin-guest", "FIRKIN_GUEST_BIN"), ("firkin-sudo", "FIRKIN_SUDO_BIN")] {
        let built = dir.join(name);
        // Watching the folder too makes a first guest build visible.
        println!("cargo::rerun-if-changed={}", built.display());
        println!("cargo::rustc-env={variable}={}", existing_or_empty(&built, name)?.display());
    }
    Ok(())
}

#[cfg(feature = "gateway")]
fn existing_or_empty(built: &Path, name: &str) -> Result<PathBuf, Box<dyn Error>> {
    if built.is_file() {
        return Ok(built.to_path_buf());
    }
    let empty = PathBuf::from(env::var("OUT_DIR")?).join(format!("{name}.none"));
    std::fs::write(&empty, [])?;
    Ok(empty)
}
