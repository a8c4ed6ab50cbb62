//! The contexts of a VM's streams, by id.
//!
//! A context stays in its place from its beginning to its end, and places are used again. Ids count up, so that their lowest
//! bits spread them evenly over short chains. Host functions ask for the same context many times in a row: that costs a
//! comparison.

use super::context::StreamContext;

/// No place.
const NONE: u32 = u32::MAX;
/// Chains to begin with.
const FEW: usize = 16;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Streams {
    places: Vec<Place>,
    /// The first place of each chain; a power of two, and no fewer than there are contexts.
    chains: Vec<u32>,
    /// The free places are a chain, too: its first, plus one.
    free: u32,
    len: usize,
    /// The place that was last asked for.
    recent: u32,
}

struct Place {
    /// 0: it is free. No stream has that id.
    id: u32,
    next: u32,
    context: Option<StreamContext>,
}

impl Streams {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn find(&self, id: u32) -> Option<u32> {
        match self.places.get(self.recent as usize) {
            Some(place) if place.id == id => Some(self.recent),
            _ => self.search(id),
        }
    }

    fn search(&self, id: u32) -> Option<u32> {
        let mut at = *self.chains.get(self.chain(id))?;
        while let Some(place) = self.places.get(at as usize) {
            if place.id == id {
                return Some(at);
            }
            at = place.next;
        }
        None
    }

    fn chain(&self, id: u32) -> usize {
        id as usize & self.chains.len().wrapping_sub(1)
    }

    /// That of `id`.
    #[inline]
    pub(crate) fn get(&self, id: u32) -> Option<&StreamContext> {
        let at = self.find(id)?;
        self.places.get(at as usize)?.context.as_ref()
    }

    /// As [`Streams::get`].
    #[inline]
    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut StreamContext> {
        let at = self.find(id)?;
        self.recent = at;
        self.places.get_mut(at as usize)?.context.as_mut()
    }

    /// Adds the context of a stream whose id, which is not 0, no other has. Inlined, so that it is made in its place.
    #[inline]
    pub(crate) fn insert(&mut self, id: u32, context: StreamContext) -> &mut StreamContext {
        if self.len == self.chains.len() {
            self.grow();
        }
        let at = match self.free.checked_sub(1) {
            Some(at) => {
                self.free = self.places[at as usize].next;
                at
            }
            None => {
                self.places.push(Place {
                    id: 0,
                    next: NONE,
                    context: None,
                });
                // As many as there are ids at most.
                (self.places.len() - 1) as u32
            }
        };
        let chain = self.chain(id);
        let next = std::mem::replace(&mut self.chains[chain], at);
        self.recent = at;
        self.len += 1;
        let place = &mut self.places[at as usize];
        place.id = id;
        place.next = next;
        place.context.insert(context)
    }

    #[cold]
    fn grow(&mut self) {
        self.chains = vec![NONE; (self.chains.len() * 2).max(FEW)];
        for at in 0..self.places.len() {
            let id = self.places[at].id;
            if id != 0 {
                let chain = self.chain(id);
                self.places[at].next = std::mem::replace(&mut self.chains[chain], at as u32);
            }
        }
    }

    /// Forgets that of `id`, if there is one.
    pub(crate) fn remove(&mut self, id: u32) {
        let Some(at) = self.find(id).filter(|_| id != 0) else {
            return;
        };
        let next = self.places[at as usize].next;
        let chain = self.chain(id);
        if self.chains[chain] == at {
            self.chains[chain] = next;
        } else {
            let mut before = self.chains[chain];
            while let Some(place) = self.places.get_mut(before as usize) {
                if place.next == at {
                    place.next = next;
                    break;
                }
                before = place.next;
            }
        }
        self.len -= 1;
        let place = &mut self.places[at as usize];
        place.id = 0;
        place.next = self.free;
        self.free = at + 1;
        place.context = None;
    }

    /// All of them.
    pub(crate) fn values(&self) -> impl Iterator<Item = &StreamContext> {
        self.places
            .iter()
            .filter_map(|place| place.context.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::wasm::fuzzing;

    #[test]
    fn each_is_found_by_its_id_until_it_is_forgotten() {
        let stream = fuzzing::stream();
        let mut streams = Streams::default();
        let mut known = BTreeSet::new();
        let mut random = fastrand::Rng::with_seed(7);
        let root = |streams: &Streams, id| streams.get(id).map(|context| context.root);
        streams.remove(1);
        assert_eq!(root(&streams, 0), None);
        for id in 1..5000u32 {
            // Roots tell the contexts apart.
            let context = StreamContext::new(stream.clone(), id * 2);
            assert_eq!(streams.insert(id, context).root, id * 2);
            known.insert(id);
            // At most a few hundred live at once, some of them for long.
            while known.len() > 300 || random.u8(..) < 100 {
                let Some(gone) = known.iter().copied().nth(random.usize(..300)) else {
                    break;
                };
                streams.remove(gone);
                streams.remove(gone);
                known.remove(&gone);
                assert_eq!(root(&streams, gone), None);
            }
            let asked = random.u32(1..=id);
            let expected = known.contains(&asked).then_some(asked * 2);
            assert_eq!(root(&streams, asked), expected);
            let found = streams.get_mut(asked).map(|context| context.root);
            assert_eq!(found, expected);
            assert_eq!(root(&streams, 0), None);
            assert!(streams.get_mut(0).is_none());
        }
        assert_eq!(streams.len(), known.len());
        let roots: BTreeSet<u32> = streams.values().map(|context| context.root).collect();
        assert_eq!(roots, known.iter().map(|id| id * 2).collect());
        assert!(streams.places.len() < 400);
    }
}
