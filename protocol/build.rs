//! Compiles the .proto files with protox, so that no protoc has to be installed.

use prost::Message as _;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors =
        protox::compile(["proto/scheduler.proto", "proto/daemon.proto", "proto/enrolment.proto"], ["proto"])?;
    let shown = protox::compile(["proto/scheduler.proto"], ["proto"])?;
    let folder = std::env::var_os("OUT_DIR").ok_or("cargo names a folder")?;
    std::fs::write(Path::new(&folder).join("descriptors.bin"), shown.encode_to_vec())?;
    // They hold what is nobody else's: lib.rs says how they are printed.
    let redacted =
        ["darter.enrolment.v1.EnrolRequest", "darter.daemon.v1.Header", "darter.daemon.v1.DownloadRequest"];
    let generated = tonic_prost_build::configure().bytes(".").codec_path("crate::codec::Lean");
    generated.skip_debug(redacted).compile_fds(descriptors)?;
    Ok(())
}
