//! What a profile's provenance holds beside what the device tells.

use std::time::{SystemTime, UNIX_EPOCH};

use smidgen_runtime::device::Device;
use smidgen_runtime::profile::Provenance;

/// Who measures what, by which command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The model whose request was recorded, as `--model` names it.
    pub model: String,
    /// Hash of the kernels in this binary; empty where it holds none.
    pub kernel_build: String,
    /// The command line that measures this, as a shell takes it.
    pub command: String,
    /// Commit of the sources, empty where unknown.
    pub commit: String,
    /// The day, `2026-11-21`; see [`today`].
    pub date: String,
}

impl Origin {
    /// The provenance of what is measured on `device`.
    pub(crate) fn provenance(&self, device: &dyn Device) -> Provenance {
        let topology = device.topology();
        Provenance {
            gpu: topology.name.clone(),
            sms: topology.sms,
            driver: topology.driver.clone(),
            kernel_build: self.kernel_build.clone(),
            models: vec![self.model.clone()],
            command: self.command.clone(),
            commit: self.commit.clone(),
            date: self.date.clone(),
            simulated: device.is_simulated(),
        }
    }
}

/// Today's date in UTC, `2026-11-21`.
pub fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    civil_date(seconds / 86_400)
}

/// The Gregorian date `days` days after 1970-01-01. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`:
/// years begin in March, so that the leap day comes last, and 400 of them (an era) have 146097 days.
fn civil_date(days: u64) -> String {
    let since_march_0000 = days + 719_468;
    let (era, day_of_era) = (since_march_0000 / 146_097, since_march_0000 % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_since_1970_are_dates_of_the_gregorian_calendar() {
        for (days, date) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (19_782, "2024-02-29"),
            (20_778, "2026-11-21"),
        ] {
            assert_eq!(civil_date(days), date);
        }
    }
}
