// SPDX-License-Identifier: MIT OR Apache-2.0
//! Carries the store's repairs out: most are the store's own; those that need layers, images or volumes are done here.

use std::collections::HashSet;

use crate::model::Digest;
use crate::store::check::{StoreFinding, StoreRepair};

use super::super::{OrFail, Result, ending, filling, load};
use super::{Check, Done, How, Mend, Report};

impl Check<'_> {
    /// Tells all, and mends what can be mended.
    pub(super) fn mend_all(&self, findings: Vec<StoreFinding>, report: &mut Report) {
        let mut rebuilt = HashSet::new();
        let mut mend = |repair: &StoreRepair| self.mend(repair, &mut rebuilt);
        let mend: Mend<'_, StoreRepair> = if self.how == How::Repair { Some(&mut mend) } else { None };
        report.add(order(findings), StoreRepair::describe, mend);
    }

    fn mend(&self, repair: &StoreRepair, rebuilt: &mut HashSet<Digest>) -> Result<Done> {
        let what = || "cannot repair the store";
        match repair {
            StoreRepair::Rebuild { layer, blob, damaged } => {
                if let Some((part, digest)) = damaged {
                    self.store.move_damaged(*part, digest).or_fail(what)?;
                }
                // One reading of the layer brings all that it lacks, once everything damaged is out of the way.
                if damaged.is_none() || rebuilt.insert(*layer) {
                    load::rebuild_index(&self.store, blob, layer)?;
                }
                if let Some((part, digest)) = damaged
                    && part.sum(&self.store, digest, &mut |_| {}).is_err()
                {
                    load::rebuild_index(&self.store, blob, layer)?;
                    let sum = part.sum(&self.store, digest, &mut |_| {});
                    sum.map_err(|why| super::EngineError::failed(format!("the blob does not bring it back: {why}")))?;
                }
            }
            StoreRepair::ClearIncomplete => ending::clear_incomplete(&self.store)?,
            StoreRepair::Fill(name) => self.fill(name)?,
            other => self.store.repair(other).or_fail(what)?,
        }
        Ok(if repair.is_partial() { Done::InPart } else { Done::Whole })
    }

    /// Fills a volume to its end. Where nothing of the copy is left, it is as it was before, and says so.
    fn fill(&self, name: &str) -> Result<()> {
        filling::complete(&self.store, name)?;
        let what = || format!("cannot repair the volume {name}");
        let _lock = self.store.lock_volume(name, crate::store::Wait::Block).or_fail(what)?;
        let mut volume = self.store.find_volume(name).or_fail(what)?;
        if volume.incomplete {
            volume.incomplete = false;
            self.store.replace_volume(&volume).or_fail(what)?;
        }
        Ok(())
    }
}

/// Removing leftovers and putting things aside comes before making anew.
fn order(mut findings: Vec<StoreFinding>) -> Vec<StoreFinding> {
    use crate::model::finding::Cure;
    findings.sort_by_key(|finding| match &finding.cure {
        Cure::Repair(StoreRepair::MoveAside(_) | StoreRepair::MoveDamaged { .. }) => 0,
        Cure::Repair(StoreRepair::Rebuild { .. }) => 2,
        _ => 1,
    });
    findings
}
