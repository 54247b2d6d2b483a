//! Compiles the messages of an earlier version for the tests: `tests/grpc/previous.rs` speaks them.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=tests/grpc/previous");
    let descriptors = protox::compile(["scheduler.proto"], ["tests/grpc/previous"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
