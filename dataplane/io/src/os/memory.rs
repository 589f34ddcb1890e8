//! Advice to the kernel about memory.

/// Asks for huge pages behind the unused capacity of `list`, which is to be filled next: what
/// is large and read at random misses the TLB less. Nothing happens where the kernel has none.
pub fn advise_huge_pages<T>(list: &mut Vec<T>) {
    const PAGE: usize = 4096;
    let spare = list.spare_capacity_mut();
    let start = (spare.as_ptr() as usize).next_multiple_of(PAGE);
    let end = spare.as_ptr_range().end as usize / PAGE * PAGE;
    let Some(length) = end.checked_sub(start).filter(|n| *n >= 2 << 20) else {
        return;
    };
    // SAFETY: whole pages inside of an allocation of ours that nothing is stored in; the advice
    // changes neither content nor validity. Its failure means only that there is no gain.
    unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_leaves_lists_as_they_are() {
        for size in [0, 1, 4096, 8 << 20] {
            let mut list: Vec<u8> = Vec::with_capacity(size);
            advise_huge_pages(&mut list);
            list.resize(size, 7);
            assert!(list.iter().all(|b| *b == 7));
        }
    }
}
