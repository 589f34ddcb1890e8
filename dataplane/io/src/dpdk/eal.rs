//! DPDK's environment (EAL): started once per process, with the memory that the
//! machine offers and without files, PCI scans or telemetry that nobody asked for.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use mef_dpdk_sys as sys;

use crate::device::DeviceName;
use crate::os;
use crate::port::PortError;

/// Where packets' memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    Huge,
    /// 4 KiB pages: works everywhere, with more misses in the TLB and not with every NIC.
    Ordinary,
}

/// A pool of packet buffers. Pools are never freed, as a buffer may be anywhere when
/// its port is closed; the next port with the same needs takes over.
struct Pool {
    socket: i32,
    room: u16,
    packets: u32,
    in_use: bool,
    pool: NonNull<sys::rte_mempool>,
}

// SAFETY: a mempool may be used by every thread.
unsafe impl Send for Pool {}

struct Eal {
    pages: Pages,
    /// Whether the PCI bus was scanned.
    pci: bool,
    pools: Vec<Pool>,
}

static EAL: Mutex<Option<Eal>> = Mutex::new(None);

/// Memory to ask for without huge pages, MiB: for DPDK itself, and for each port; with
/// huge pages it grows as needed.
const BASE_MIB: usize = 256;
const PORT_MIB: usize = 32;
/// Less free memory in huge pages than this, bytes, is not worth starting with.
const LEAST_HUGE: u64 = 128 << 20;
/// Packets that a thread keeps for itself rather than in the pool.
const CACHE: u32 = 256;

/// The text of an error number of DPDK.
pub(super) fn strerror(code: i32) -> String {
    // SAFETY: returns a string of its own, static or of this thread, that is copied at once.
    let text = unsafe { CStr::from_ptr(sys::rte_strerror(code.abs())) };
    text.to_string_lossy().into_owned()
}

fn failed(device: &str, what: &'static str, reason: impl Into<String>) -> PortError {
    PortError::Device {
        name: device.to_owned(),
        what,
        reason: reason.into(),
    }
}

/// Free memory in huge pages of any size, bytes.
fn free_huge() -> u64 {
    let pools = std::fs::read_dir("/sys/kernel/mm/hugepages");
    let free = |dir: std::fs::DirEntry| {
        let name = dir.file_name().into_string().ok()?;
        let kib: u64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        let pages = std::fs::read_to_string(dir.path().join("free_hugepages")).ok()?;
        Some(kib * 1024 * pages.trim().parse::<u64>().ok()?)
    };
    pools.map_or(0, |dirs| dirs.flatten().filter_map(free).sum())
}

/// Arguments of `rte_eal_init`.
fn arguments(pages: Pages, ports: usize, pci: &[&str], cpus: &[usize]) -> Vec<String> {
    // DPDK pins the thread that starts it: to all that it may use, as it was before.
    let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
    let mut args = vec![
        "mef".to_owned(),
        "--no-telemetry".to_owned(),
        "--log-level=warning".to_owned(),
        format!("--lcores=0@({})", cpus.join(",")),
    ];
    match pages {
        Pages::Huge => args.push("--in-memory".to_owned()),
        // Both together are refused by DPDK 22.11.
        Pages::Ordinary => args.extend([
            "--no-huge".to_owned(),
            "--no-shconf".to_owned(),
            "-m".to_owned(),
            (BASE_MIB + PORT_MIB * ports).to_string(),
        ]),
    }
    if pci.is_empty() {
        args.push("--no-pci".to_owned());
    }
    for address in pci {
        args.extend(["-a".to_owned(), (*address).to_owned()]);
    }
    args
}

fn init(args: &[String]) -> Result<(), String> {
    let args: Vec<CString> = args
        .iter()
        .map(|a| CString::new(a.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())?;
    // DPDK reorders the pointers and keeps some of the strings, so they stay for good.
    let mut pointers: Vec<_> = args.into_iter().map(CString::into_raw).collect();
    let count = i32::try_from(pointers.len()).map_err(|e| e.to_string())?;
    // SAFETY: `count` valid strings, which nobody frees.
    let done = unsafe { sys::rte_eal_init(count, pointers.as_mut_ptr()) };
    if done < 0 {
        // SAFETY: reads a number of this thread.
        return Err(strerror(unsafe { sys::shim_errno() }));
    }
    Ok(())
}

/// Starts EAL for these devices unless it runs; says where its memory comes from.
///
/// # Errors
/// `Device`, with the reason; a failed start cannot be repeated in the same process.
pub(super) fn start(devices: &[&DeviceName]) -> Result<Pages, PortError> {
    let mut eal = EAL.lock().unwrap_or_else(PoisonError::into_inner);
    let pci: Vec<&str> = devices
        .iter()
        .filter(|d| matches!(d, DeviceName::Pci(_)))
        .map(|d| d.name())
        .collect();
    let first = devices.first().map_or("none", |d| d.name());
    match &*eal {
        Some(running) if pci.is_empty() || running.pci => return Ok(running.pages),
        Some(_) => {
            return Err(failed(
                pci.first().unwrap_or(&first),
                "starting DPDK",
                "it runs without PCI already: open all devices at once",
            ))
        }
        None => {}
    }
    let pages = if free_huge() >= LEAST_HUGE {
        Pages::Huge
    } else {
        Pages::Ordinary
    };
    let cpus =
        os::thread_cpus().map_err(|e| failed(first, "asking for its CPUs", e.to_string()))?;
    let args = arguments(pages, devices.len(), &pci, &cpus);
    // On a thread of its own, which becomes DPDK's main one: threads that use ports register themselves.
    let done = std::thread::scope(|s| s.spawn(|| init(&args)).join())
        .unwrap_or_else(|_| Err("its thread died".to_owned()));
    done.map_err(|reason| {
        let hint = "what it said is above on stderr";
        failed(first, "starting DPDK", format!("{reason}; {hint}"))
    })?;
    *eal = Some(Eal {
        pages,
        pci: !pci.is_empty(),
        pools: Vec::new(),
    });
    Ok(pages)
}

/// Makes the calling thread known to DPDK, so that it has a cache of free packets
/// of its own; undone when the thread ends.
pub(super) fn register_thread() {
    struct Registered(bool);
    impl Drop for Registered {
        fn drop(&mut self) {
            if self.0 {
                // SAFETY: this thread was registered.
                unsafe { sys::rte_thread_unregister() }
            }
        }
    }
    thread_local! {
        // SAFETY: only called when EAL runs. A refusal (more than 128 threads) costs the cache only.
        static REGISTERED: Registered = Registered(unsafe { sys::rte_thread_register() } == 0);
    }
    REGISTERED.with(|_| ());
}

/// A pool of `packets` buffers on a NUMA socket, each with `room` bytes behind the
/// headroom; for one device until it is [returned](return_pool).
///
/// # Errors
/// `Device` if there is not enough memory.
pub(super) fn take_pool(
    device: &str,
    socket: i32,
    room: u16,
    packets: u32,
) -> Result<NonNull<sys::rte_mempool>, PortError> {
    let mut eal = EAL.lock().unwrap_or_else(PoisonError::into_inner);
    let what = "making its packet buffers";
    let Some(eal) = eal.as_mut() else {
        return Err(failed(device, what, "DPDK is not started"));
    };
    let fits =
        |p: &&mut Pool| !p.in_use && p.socket == socket && p.room == room && p.packets >= packets;
    if let Some(p) = eal.pools.iter_mut().find(fits) {
        p.in_use = true;
        return Ok(p.pool);
    }
    let name = CString::new(format!("mef_{}", eal.pools.len())).unwrap_or_default();
    let size = room.saturating_add(sys::RTE_PKTMBUF_HEADROOM as u16);
    // SAFETY: EAL runs; the name is copied.
    let pool =
        unsafe { sys::rte_pktmbuf_pool_create(name.as_ptr(), packets, CACHE, 0, size, socket) };
    let Some(pool) = NonNull::new(pool) else {
        // SAFETY: reads a number of this thread.
        let reason = strerror(unsafe { sys::shim_errno() });
        let advice = "more huge pages help, for example `sysctl vm.nr_hugepages=256`";
        return Err(failed(
            device,
            what,
            format!("{reason} ({packets} of {size} bytes); {advice}"),
        ));
    };
    eal.pools.push(Pool {
        socket,
        room,
        packets,
        in_use: true,
        pool,
    });
    Ok(pool)
}

/// The device that took `pool` is closed.
pub(super) fn return_pool(pool: NonNull<sys::rte_mempool>) {
    let mut eal = EAL.lock().unwrap_or_else(PoisonError::into_inner);
    let pools = eal.as_mut().map_or(&mut [][..], |e| &mut e.pools);
    for p in pools.iter_mut().filter(|p| p.pool == pool) {
        p.in_use = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_say_what_was_decided() {
        let huge = arguments(Pages::Huge, 2, &[], &[0, 2, 3]).join(" ");
        assert!(huge.contains("--lcores=0@(0,2,3)") && huge.ends_with("--in-memory --no-pci"));
        let small = arguments(Pages::Ordinary, 2, &["0000:01:00.0"], &[1]).join(" ");
        assert!(
            small.contains("-m 320")
                && small.contains("--no-huge")
                && small.ends_with("-a 0000:01:00.0")
        );
        assert!(!small.contains("--no-pci") && !small.contains("--in-memory"));
    }
}
