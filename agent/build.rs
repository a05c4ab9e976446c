//! Links the agent smaller: it is copied into every guest, and weighs there.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=no-unwind.ld");
    let value = |name: &str| std::env::var(name).unwrap_or_default();
    // Where panics abort, nothing reads the tables for unwinding.
    if value("PROFILE") == "release" {
        let script = format!("{}/no-unwind.ld", value("CARGO_MANIFEST_DIR"));
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{script}");
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
