// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images, blobs, indexes and objects: the long sums, with their progress.

use crate::store::check::StoreFinding;
use crate::store::check::images::Census;
use crate::store::container::ContainerRecord;
use crate::store::image::Image;

use super::super::Result;
use super::{Check, Report};

impl Check<'_> {
    pub(super) fn content(&self, containers: &[ContainerRecord], report: &mut Report) -> Result<()> {
        let mut findings = Vec::new();
        let lock = self.lock()?;
        let census = self.store.check_images(containers, &mut findings);
        self.sum(&census, &mut findings);
        drop(lock);
        self.mend_all(findings, report);
        Ok(())
    }

    /// One image alone.
    pub(super) fn image(&self, image: &Image, report: &mut Report) -> Result<()> {
        let mut findings = Vec::new();
        let lock = self.lock()?;
        let census = self.store.check_one_image(image, &mut findings);
        self.sum(&census, &mut findings);
        drop(lock);
        self.mend_all(findings, report);
        Ok(())
    }

    fn sum(&self, census: &Census, findings: &mut Vec<StoreFinding>) {
        self.progress.begin(0, "checking", Some(self.store.bytes_to_sum(census)));
        self.store.check_content(census, findings, &mut |bytes| self.progress.advance(0, bytes));
        self.progress.end(0);
    }
}
