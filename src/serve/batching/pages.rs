//! Who holds which page of the key-value cache.
//!
//! The cache of all sequences is one fixed pool of pages, each with room for the keys and values of a few tokens in every layer. A sequence takes pages as it
//! grows and gives all of them back when it leaves, so that memory is spent on tokens that are there and not on the longest sequence there might be.
//! The pool is bookkeeping alone: it knows numbers of pages, no addresses. When it is empty the [`Scheduler`](super::Scheduler) decides who must leave.
//!
//! Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023, section 4.

/// The pages that nobody holds, of a fixed number of pages counted from 0.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<u32>,
    page_tokens: usize,
}

/// The pages of one sequence: page `i` has its tokens from `i * page_tokens` on. They must go back to the pool that they came from: there is no copy of
/// them, and dropped ones are lost to it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HeldPages(Vec<u32>);

impl PagePool {
    /// A pool of `pages` free pages with room for `page_tokens` tokens each, at least 1.
    pub fn new(pages: u32, page_tokens: u32) -> Self {
        // Low numbers are taken first.
        Self { free: (0..pages).rev().collect(), page_tokens: page_tokens.max(1) as usize }
    }

    /// Pages that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages that `tokens` tokens need.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    /// Gives `held` enough pages for `tokens` tokens, or none at all where the pool has too few: whether it has them now.
    #[must_use]
    pub fn grow(&mut self, held: &mut HeldPages, tokens: usize) -> bool {
        let missing = self.pages_for(tokens).saturating_sub(held.0.len());
        if missing > self.free.len() {
            return false;
        }
        held.0.extend(self.free.drain(self.free.len() - missing..).rev());
        true
    }

    /// Takes all pages of `held` back.
    pub fn give_back(&mut self, held: &mut HeldPages) {
        self.free.extend(held.0.drain(..).rev());
    }
}

impl HeldPages {
    /// Their numbers, in the order of the tokens they hold.
    pub fn numbers(&self) -> &[u32] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_page_is_held_twice_and_none_is_lost(
            pages in 0_u32..40,
            page_tokens in 1_u32..6,
            acts in prop::collection::vec((0_usize..5, prop::option::weighted(0.7, 0_usize..60)), 0..200),
        ) {
            let mut pool = PagePool::new(pages, page_tokens);
            let mut sequences: [HeldPages; 5] = Default::default();
            for (sequence, tokens) in acts {
                let held = &mut sequences[sequence];
                let (before, free) = (held.numbers().to_vec(), pool.free());
                match tokens {
                    None => pool.give_back(held),
                    Some(tokens) => {
                        let wanted = tokens.div_ceil(page_tokens as usize).max(before.len());
                        let grown = pool.grow(held, tokens);
                        prop_assert_eq!(grown, wanted - before.len() <= free, "refused only where there are too few");
                        prop_assert_eq!(held.numbers().len(), if grown { wanted } else { before.len() });
                        prop_assert_eq!(&held.numbers()[..before.len()], before, "the tokens that are there stay where they are");
                    }
                }
                let mut all: Vec<u32> = sequences.iter().flat_map(HeldPages::numbers).chain(&pool.free).copied().collect();
                all.sort_unstable();
                prop_assert_eq!(all, (0..pages).collect::<Vec<_>>(), "each page is free or held once");
            }
        }
    }
}
