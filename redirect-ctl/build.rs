//! Compiles `redirect-ebpf` for the bpf target, so that `cargo build` alone makes the daemon.
//!
//! Two compilers will do: the pinned toolchain with its `rust-src` component, which builds `core` on the way, or Debian's `rustc-web` with
//! the prebuilt `core` of `libstd-rust-web-dev-bpf`. Both need `bpf-linker`. `cargo xtask setup` provides what is missing.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Headers lie at any even offset. Without this, every field would be read byte by byte; kernels on x86-64 and arm64 take such accesses to
/// packets and maps.
const MISALIGNED: &str = "-Ctarget-feature=+allows-misaligned-mem-access";
const REMEDY: &str = "run `cargo xtask setup`";

fn main() {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let root = manifest_dir.parent().expect("the package lies in the workspace");
    for input in ["redirect-ebpf", "redirect-common/src", "redirect-common/Cargo.toml", "Cargo.lock", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=PATH");

    let target = match variable("CARGO_CFG_TARGET_ENDIAN").to_str() {
        Some("big") => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    // In OUT_DIR, since the build that runs this script holds the lock of the usual target directory.
    let target_dir = PathBuf::from(variable("OUT_DIR")).join("bpf");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--release", "--package", "redirect-ebpf", "--bin", "redirect", "--target", target]);
    cargo.arg("--manifest-path").arg(root.join("Cargo.toml")).arg("--target-dir").arg(&target_dir);
    // What the verifier sees is not to depend on how the daemon is optimized; bpf-linker optimizes everything together anyway.
    cargo.args(["--config", "profile.release.lto=false", "--config", "profile.release.codegen-units=16"]);
    // The kernel takes types for all functions of a program or for none, and tells global functions by them.
    cargo.args(["--config", "profile.release.debug=2"]);
    // The outer build's wrappers, flags and profile are for the host.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_") && !matches!(&*name, "CARGO_HOME" | "CARGO_NET_OFFLINE") {
            cargo.env_remove(&*name);
        }
    }
    cargo.env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER").env_remove("RUSTC").env_remove("RUSTFLAGS");
    let rustc = PathBuf::from(variable("RUSTC"));
    if standard_library_sources(&rustc).is_some_and(|sources| sources.is_dir()) {
        cargo.args(["-Z", "build-std=core"]);
    } else if debian_core(target) {
        cargo.env("RUSTC", DEBIAN_RUSTC);
    } else {
        fail(&format!("neither rust-src nor a prebuilt core for {target} is installed; {REMEDY}"));
    }
    // Version 3 of the instruction set: 32-bit jumps and arithmetic, kernel 5.1 and later.
    let flags =
        ["-Clinker=bpf-linker", "-Clink-arg=--btf", "-Ctarget-cpu=v3", MISALIGNED, "-Cpanic=abort"].join("\x1f");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags).env("RUSTC_BOOTSTRAP", "1");

    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("building redirect-ebpf ended with {status}; if bpf-linker is missing, {REMEDY}")),
        Err(error) => fail(&format!("cannot run cargo for redirect-ebpf: {error}")),
    }
    let object = target_dir.join(target).join("release/redirect");
    println!("cargo::rustc-env=REDIRECT_BPF_OBJECT={}", object.display());
}

fn standard_library_sources(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let sysroot = String::from_utf8(output.stdout).ok()?;
    Some(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core"))
}

fn debian_core(target: &str) -> bool {
    let output = Command::new(DEBIAN_RUSTC)
        .args(["--print", "target-libdir", "--target", target])
        .env("RUSTC_BOOTSTRAP", "1")
        .output();
    output.is_ok_and(|output| {
        let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success() && Path::new(&directory).is_dir()
    })
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| fail(&format!("cargo sets {name} for build scripts")))
}

/// One line on cargo's error output.
fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1)
}
