//! The buffer of a DPDK port: an mbuf of the port's pool, or memory of the heap
//! for what no mbuf holds (super-segments, or a pool that is empty).
//!
//! ```text
//!  buf_addr          + data_off              + data_len          + buf_len
//!  |    headroom     |         packet        |     tailroom      |
//! ```

use std::ptr::NonNull;

use mef_dpdk_sys as sys;
use mef_packet::{Buffer, HeapBuf};

/// The only owner of an mbuf of one segment; it goes back to its pool when dropped.
#[derive(Debug)]
pub(super) struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: an mbuf belongs to no thread: its one owner may be moved between threads,
// and its pool is a ring for several producers and consumers.
unsafe impl Send for Mbuf {}

impl Mbuf {
    /// An empty one from `pool`, with its default headroom; `None` if there is none.
    pub fn alloc(pool: NonNull<sys::rte_mempool>) -> Option<Self> {
        // SAFETY: pools live as long as the process.
        NonNull::new(unsafe { sys::shim_mbuf_alloc(pool.as_ptr()) }).map(Self)
    }

    /// Takes over what a receive burst gave.
    ///
    /// # Safety
    /// `raw` is a valid mbuf of one segment that nobody else uses.
    pub unsafe fn from_raw(raw: NonNull<sys::rte_mbuf>) -> Self {
        Self(raw)
    }

    /// Gives it up to a transmit burst; without that it is lost to its pool.
    pub fn into_raw(self) -> *mut sys::rte_mbuf {
        let raw = self.0.as_ptr();
        std::mem::forget(self);
        raw
    }

    pub fn raw(&self) -> NonNull<sys::rte_mbuf> {
        self.0
    }

    #[inline]
    fn header(&self) -> &sys::rte_mbuf {
        // SAFETY: valid while it is owned, and this is the only owner.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn header_mut(&mut self) -> &mut sys::rte_mbuf {
        // SAFETY: as above; `&mut self` makes it unique.
        unsafe { self.0.as_mut() }
    }

    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.header().data_len)
    }

    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let h = self.header();
        // SAFETY: data_off + data_len <= buf_len bytes from buf_addr on belong to this mbuf, which
        // every change below keeps; DPDK's memory comes from the kernel, so it is initialised.
        unsafe {
            std::slice::from_raw_parts(
                h.buf_addr.cast::<u8>().add(usize::from(h.data_off)),
                usize::from(h.data_len),
            )
        }
    }

    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let h = self.header();
        // SAFETY: as in `bytes`, and `&mut self` makes the access unique.
        unsafe {
            std::slice::from_raw_parts_mut(
                h.buf_addr.cast::<u8>().add(usize::from(h.data_off)),
                usize::from(h.data_len),
            )
        }
    }

    /// Room behind the packet, bytes.
    #[inline]
    pub fn tailroom(&self) -> usize {
        let h = self.header();
        usize::from(h.buf_len).saturating_sub(usize::from(h.data_off) + usize::from(h.data_len))
    }

    #[inline]
    fn set(&mut self, data_off: u16, data_len: u16) {
        let h = self.header_mut();
        h.data_off = data_off;
        h.data_len = data_len;
        h.pkt_len = u32::from(data_len);
    }

    #[inline]
    pub fn prepend(&mut self, n: usize) -> Option<&mut [u8]> {
        let h = self.header();
        let n16 = u16::try_from(n).ok()?;
        let (off, len) = (h.data_off.checked_sub(n16)?, h.data_len.checked_add(n16)?);
        self.set(off, len);
        self.bytes_mut().get_mut(..n)
    }

    #[inline]
    pub fn append(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > self.tailroom() {
            return None;
        }
        let h = self.header();
        let at = usize::from(h.data_len);
        let len = h.data_len.checked_add(u16::try_from(n).ok()?)?;
        self.set(h.data_off, len);
        self.bytes_mut().get_mut(at..)
    }

    #[inline]
    fn trim_front(&mut self, n: usize) -> Option<()> {
        let h = self.header();
        let n16 = u16::try_from(n).ok()?;
        let len = h.data_len.checked_sub(n16)?;
        self.set(h.data_off.checked_add(n16)?, len);
        Some(())
    }

    #[inline]
    fn truncate(&mut self, len: usize) {
        let h = self.header();
        if let Ok(len) = u16::try_from(len) {
            if len < h.data_len {
                self.set(h.data_off, len);
            }
        }
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // SAFETY: owned, and not used after this.
        unsafe { sys::shim_mbuf_free(self.0.as_ptr()) }
    }
}

/// Where the bytes of a [`DpdkBuf`] are. Packets move from stage to stage: the rare case is boxed,
/// so that the common one is small.
#[derive(Debug)]
pub(super) enum Memory {
    Mbuf(Mbuf),
    Heap(Box<HeapBuf>),
}

/// One packet, or one super-segment, of a DPDK port.
#[derive(Debug)]
pub struct DpdkBuf(pub(super) Memory);

impl Buffer for DpdkBuf {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Memory::Mbuf(m) => m.bytes(),
            Memory::Heap(h) => h.bytes(),
        }
    }
    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Mbuf(m) => m.bytes_mut(),
            Memory::Heap(h) => h.bytes_mut(),
        }
    }
    #[inline]
    fn len(&self) -> usize {
        match &self.0 {
            Memory::Mbuf(m) => m.len(),
            Memory::Heap(h) => h.len(),
        }
    }
    #[inline]
    fn prepend(&mut self, n: usize) -> Option<&mut [u8]> {
        match &mut self.0 {
            Memory::Mbuf(m) => m.prepend(n),
            Memory::Heap(h) => h.prepend(n),
        }
    }
    #[inline]
    fn append(&mut self, n: usize) -> Option<&mut [u8]> {
        match &mut self.0 {
            Memory::Mbuf(m) => m.append(n),
            Memory::Heap(h) => h.append(n),
        }
    }
    #[inline]
    fn trim_front(&mut self, n: usize) -> Option<()> {
        match &mut self.0 {
            Memory::Mbuf(m) => m.trim_front(n),
            Memory::Heap(h) => h.trim_front(n),
        }
    }
    #[inline]
    fn truncate(&mut self, len: usize) {
        match &mut self.0 {
            Memory::Mbuf(m) => m.truncate(len),
            Memory::Heap(h) => h.truncate(len),
        }
    }
}
