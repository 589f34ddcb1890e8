//! Finds libdpdk with pkg-config, compiles the shim for its inline functions and
//! generates the bindings. What is missing on the machine is named together with
//! the way to do without.

use std::path::PathBuf;
use std::process::ExitCode;

/// The first release whose structures and names the port knows.
const OLDEST: &str = "22.11";
/// What the port calls; the drivers are loaded by EAL when it starts.
const LIBRARIES: [&str; 5] = [
    "rte_ethdev",
    "rte_mempool",
    "rte_mbuf",
    "rte_ring",
    "rte_eal",
];
const FUNCTIONS: &str = "rte_eal_(init|cleanup)|rte_dev_(probe|remove)|rte_thread_(un)?register\
    |rte_eth_(dev_(configure|start|stop|close|socket_id|info_get|get_port_by_name|get_mtu|set_mtu|adjust_nb_rx_tx_desc)\
    |[rt]x_queue_setup|promiscuous_enable|macaddr_get|stats_get|link_get_nowait)\
    |rte_pktmbuf_(pool_create|free)|rte_strerror|rte_version|rte_get_tsc_hz|shim_.*";
const TYPES: &str =
    "rte_(eth_conf|eth_dev_info|eth_stats|eth_link|eth_rxconf|eth_txconf|ether_addr|mbuf|mempool)";
const CONSTANTS: &str = "RTE_PKTMBUF_HEADROOM|SHIM_.*";
/// Packed structures with inner alignment, which Rust cannot express; nothing here looks into them.
const OPAQUE: &str = "rte_arp_.*|rte_l2tpv2_.*|rte_gtp_psc_.*|rte_ether_hdr|rte_vlan_hdr";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("error: {what}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    for file in ["shim.c", "shim.h", "build.rs"] {
        println!("cargo:rerun-if-changed={file}");
    }
    let library = pkg_config::Config::new()
        .atleast_version(OLDEST)
        .cargo_metadata(false)
        .probe("libdpdk")
        .map_err(|e| {
            format!(
                "DPDK {OLDEST} or newer is needed and pkg-config does not find it.\n\
                 Install it (Debian: `apt-get install libdpdk-dev pkg-config libclang-dev`),\n\
                 or build without DPDK ports: `cargo build --no-default-features`.\n\
                 pkg-config said: {e}"
            )
        })?;
    // Most of the headers' inline functions need SSE 4.2, DPDK's own minimum on x86.
    let x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|a| a == "x86_64");
    let mut flags = vec!["-include", "rte_config.h", "-Wno-deprecated-declarations"];
    if x86 {
        flags.push("-march=x86-64-v2");
    }

    let mut shim = cc::Build::new();
    shim.file("shim.c").opt_level(3);
    for flag in &flags {
        shim.flag(flag);
    }
    let mut bindings = bindgen::Builder::default()
        .header("shim.h")
        .use_core()
        .layout_tests(false)
        .generate_comments(false)
        .clang_args(&flags)
        .allowlist_function(FUNCTIONS)
        .allowlist_type(TYPES)
        .allowlist_var(CONSTANTS)
        .opaque_type(OPAQUE);
    for path in &library.include_paths {
        shim.include(path);
        bindings = bindings.clang_arg(format!("-I{}", path.display()));
    }
    shim.try_compile("mef_dpdk_shim")
        .map_err(|e| format!("the shim for DPDK does not compile: {e}"))?;
    // Behind the shim, whose symbols they resolve.
    for path in &library.link_paths {
        println!("cargo:rustc-link-search=native={}", path.display());
    }
    for name in LIBRARIES {
        println!("cargo:rustc-link-lib=dylib={name}");
    }
    let out = std::env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?;
    bindings
        .generate()
        .map_err(|e| {
            format!(
                "bindings to DPDK cannot be generated (needs libclang; Debian: `apt-get install libclang-dev`): {e}"
            )
        })?
        .write_to_file(PathBuf::from(out).join("bindings.rs"))
        .map_err(|e| format!("bindings cannot be written: {e}"))
}
