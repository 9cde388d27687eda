//! Process entry: the allocator, then the command line.

/// musl's own allocator is slow with many threads; this one is fast everywhere.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    portcullis::cli::main()
}
