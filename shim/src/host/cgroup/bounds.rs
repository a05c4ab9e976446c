//! Limits that name what is the host's: processors and nodes of memory, and disks by their numbers. To a guest these would
//! be others, so they hold for all that a sandbox takes of the host. So do those of huge pages, of which its own processes
//! take none.

use crate::host::number_list::NumberList;
use oci_spec::runtime::{LinuxResources, LinuxThrottleDevice};
use std::collections::BTreeMap;

/// What `io.max` calls the rates of a disk, in the order of [`Rates`].
const RATES: [&str; 4] = ["rbps", "wbps", "riops", "wiops"];

/// Of one disk; 0: no limit.
type Rates = [u64; RATES.len()];

/// Major and minor number.
type Disk = (u32, u32);

/// The weight of who names none, and the most.
const DEFAULT_WEIGHT: u16 = 100;
const MOST_WEIGHT: u16 = 1000;

/// Those of a container, or of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Lists as the kernel's; empty: all.
    cpus: String,
    mems: String,
    disks: BTreeMap<Disk, Rates>,
    /// Of block I/O, from 10 to 1000 as of cgroups of version 1; `None`: on every disk that has none of its own.
    weights: BTreeMap<Option<Disk>, u16>,
    /// Bytes by the size of a page, as files are named.
    pages: BTreeMap<String, u64>,
}

impl Bounds {
    /// These with those changed that are named.
    #[must_use]
    pub fn changed(mut self, to: &LinuxResources) -> Self {
        let cpu = to.cpu().as_ref();
        if let Some(cpus) = cpu.and_then(|cpu| cpu.cpus().clone()) {
            self.cpus = cpus;
        }
        if let Some(mems) = cpu.and_then(|cpu| cpu.mems().clone()) {
            self.mems = mems;
        }
        if let Some(io) = to.block_io() {
            let lists = [
                io.throttle_read_bps_device(),
                io.throttle_write_bps_device(),
                io.throttle_read_iops_device(),
                io.throttle_write_iops_device(),
            ];
            for (which, list) in lists.into_iter().enumerate() {
                list.iter().flatten().for_each(|limit| self.set_rate(which, limit));
            }
            self.set_weight(None, io.weight());
            for of in io.weight_device().iter().flatten() {
                if let (Ok(major), Ok(minor)) = (of.major().try_into(), of.minor().try_into()) {
                    self.set_weight(Some((major, minor)), of.weight());
                }
            }
        }
        for limit in to.hugepage_limits().iter().flatten() {
            self.pages.insert(limit.page_size().clone(), limit.limit().try_into().unwrap_or(0));
        }
        let files = to.unified().iter().flatten();
        files.fold(self, |bounds, (file, value)| bounds.with_file(file, value.trim()))
    }

    fn set_rate(&mut self, which: usize, limit: &LinuxThrottleDevice) {
        if let (Ok(major), Ok(minor)) = (limit.major().try_into(), limit.minor().try_into()) {
            self.disks.entry((major, minor)).or_default()[which] = limit.rate();
        }
    }

    /// 0 is none, as to runc.
    fn set_weight(&mut self, of: Option<Disk>, weight: Option<u16>) {
        if let Some(weight) = weight.filter(|&weight| weight > 0) {
            self.weights.insert(of, weight);
        }
    }

    fn weight(&self, of: Option<Disk>) -> u16 {
        let weight = self.weights.get(&of).or_else(|| self.weights.get(&None));
        weight.copied().unwrap_or(DEFAULT_WEIGHT)
    }

    /// With what a file of the cgroup says.
    fn with_file(mut self, file: &str, value: &str) -> Self {
        match file {
            "cpuset.cpus" => value.clone_into(&mut self.cpus),
            "cpuset.mems" => value.clone_into(&mut self.mems),
            "io.max" => value.lines().for_each(|line| self.set_disk(line)),
            WEIGHTS => value.lines().for_each(|line| self.set_weight_line(line)),
            _ => {
                let page = file.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(".max"));
                if let Some(page) = page.filter(|page| !page.contains('.')) {
                    match value.parse() {
                        Ok(bytes) => drop(self.pages.insert(page.to_owned(), bytes)),
                        Err(_) => drop(self.pages.remove(page)),
                    }
                }
            }
        }
        self
    }

    /// `MAJOR:MINOR KEY=VALUE…`.
    fn set_disk(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let Some(disk) = words.next().and_then(disk) else { return };
        let rates = self.disks.entry(disk).or_default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            if let Some(which) = RATES.iter().position(|name| *name == key) {
                rates[which] = value.parse().unwrap_or(0);
            }
        }
    }

    /// `MAJOR:MINOR WEIGHT`, `default WEIGHT` or the weight alone.
    fn set_weight_line(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [weight] | ["default", weight] => self.set_weight(None, weight.parse().ok()),
            [of, "default"] => drop(disk(of).map(|of| self.weights.remove(&Some(of)))),
            [of, weight] => {
                if let Some(of) = disk(of) {
                    self.set_weight(Some(of), weight.parse().ok());
                }
            }
            _ => {}
        }
    }

    /// How many processors it may use; none: all that there are.
    pub fn cpus(&self) -> Option<u32> {
        // What is no list the kernel refuses.
        NumberList::parse(&self.cpus).ok().map(|list| list.count()).filter(|&count| count > 0)
    }

    /// What several may take together: the sum, or all processors of one or the other, of that which each has a limit of.
    pub fn of_all(all: &[&Self]) -> Self {
        let lists = |of: fn(&Self) -> &str| {
            let mut lists: Vec<_> = all.iter().map(|one| of(one)).collect();
            lists.dedup();
            if lists.contains(&"") { String::new() } else { lists.join(",") }
        };
        let (cpus, mems) = (lists(|one| &one.cpus), lists(|one| &one.mems));
        let mut sum = Self { cpus, mems, ..Self::default() };
        for numbers in all.iter().flat_map(|one| one.disks.keys()) {
            let of = |which: usize| {
                let rate = |one: &Self| one.disks.get(numbers).map_or(0, |rates| rates[which]);
                let each = all.iter().map(|one| Some(rate(one)).filter(|&rate| rate > 0));
                each.sum::<Option<u64>>().unwrap_or(0)
            };
            sum.disks.insert(*numbers, std::array::from_fn(of));
        }
        for &of in all.iter().flat_map(|one| one.weights.keys()) {
            // Who names none has one all the same.
            let each = all.iter().map(|one| one.weight(of)).fold(0, u16::saturating_add);
            sum.weights.insert(of, each.min(MOST_WEIGHT));
        }
        for page in all.iter().flat_map(|one| one.pages.keys()) {
            let each = all.iter().map(|one| one.pages.get(page).copied());
            if let Some(bytes) = each.reduce(|a, b| Some(a?.saturating_add(b?))).flatten() {
                sum.pages.insert(page.clone(), bytes);
            }
        }
        sum
    }

    /// The processors and the nodes of memory, for systemd.
    pub(super) fn lists(&self) -> [&str; 2] {
        [&self.cpus, &self.mems]
    }

    /// What to write to which files of a cgroup that had others `before`.
    pub(super) fn files(&self, before: &Self) -> Vec<(String, String)> {
        let mut files = Vec::new();
        let lists =
            [("cpuset.cpus", &self.cpus, &before.cpus), ("cpuset.mems", &self.mems, &before.mems)];
        for (file, list, _) in lists.into_iter().filter(|(_, list, before)| list != before) {
            // Nothing at all would be no write.
            files.push((file.to_owned(), format!("{list}\n")));
        }
        let rates = |of: &Self, numbers| of.disks.get(numbers).copied().unwrap_or_default();
        let mut disks: Vec<_> = self.disks.keys().chain(before.disks.keys()).collect();
        disks.sort_unstable();
        disks.dedup();
        for numbers in disks.into_iter().filter(|n| rates(self, n) != rates(before, n)) {
            let mut line = format!("{}:{}", numbers.0, numbers.1);
            for (key, rate) in RATES.iter().zip(rates(self, numbers)) {
                let rate = if rate == 0 { "max".to_owned() } else { rate.to_string() };
                line += &format!(" {key}={rate}");
            }
            files.push(("io.max".to_owned(), line));
        }
        let mut weights: Vec<_> = self.weights.keys().chain(before.weights.keys()).collect();
        weights.sort_unstable();
        weights.dedup();
        let changed = |of: &Option<Disk>| self.weights.get(of) != before.weights.get(of);
        // That for all, which comes first, takes single disks theirs.
        let anew = |of: &Option<Disk>| changed(&None) && self.weights.contains_key(of);
        for of in weights.into_iter().filter(|of| changed(of) || anew(of)) {
            let weight = self.weights.get(of);
            let line = match (of, weight) {
                (Some((major, minor)), Some(weight)) => format!("{major}:{minor} {weight}"),
                (Some((major, minor)), None) => format!("{major}:{minor} default"),
                (None, weight) => format!("default {}", weight.unwrap_or(&DEFAULT_WEIGHT)),
            };
            files.push((WEIGHTS.to_owned(), line));
        }
        for page in
            self.pages.keys().chain(before.pages.keys().filter(|p| !self.pages.contains_key(*p)))
        {
            let bytes = self.pages.get(page);
            if bytes != before.pages.get(page) {
                let bytes = bytes.map_or("max".to_owned(), u64::to_string);
                files.push((format!("hugetlb.{page}.max"), bytes.clone()));
                files.push((format!("hugetlb.{page}{RESERVED}"), bytes));
            }
        }
        files
    }
}

/// `MAJOR:MINOR`.
fn disk(numbers: &str) -> Option<Disk> {
    let (major, minor) = numbers.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Ends the name of the file for reserved pages, which older kernels have not.
pub(super) const RESERVED: &str = ".rsvd.max";

/// The file for weights of block I/O, which is there with the BFQ scheduler alone.
pub(super) const WEIGHTS: &str = "io.bfq.weight";

/// What it would be told, for `io.weight`, which counts to 10,000: as runc, not of single disks.
pub(super) fn without_bfq(line: &str) -> Option<String> {
    let weight: u32 = line.strip_prefix("default ")?.parse().ok()?;
    Some(format!("default {}", 1 + weight.saturating_sub(10) * 9999 / 990))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn changed(bounds: Bounds, json: Value) -> Bounds {
        bounds.changed(&serde_json::from_value(json).unwrap())
    }

    fn bounds(json: Value) -> Bounds {
        changed(Bounds::default(), json)
    }

    fn files(now: &Bounds, before: &Bounds) -> Vec<String> {
        let files = now.files(before).into_iter();
        files.map(|(file, text)| format!("{file}: {text}").trim_end().to_owned()).collect()
    }

    #[test]
    fn what_is_named_is_written_and_taken_back() {
        let limit = |rate: u64| json!([{"major": 8, "minor": 16, "rate": rate}]);
        let all = bounds(json!({
            "cpu": {"cpus": "0-1", "mems": "0"},
            "blockIO": {"throttleReadBpsDevice": limit(7), "throttleWriteIOPSDevice": limit(9)},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}],
        }));
        let none = Bounds::default();
        let expected = [
            "cpuset.cpus: 0-1",
            "cpuset.mems: 0",
            "io.max: 8:16 rbps=7 wbps=max riops=max wiops=9",
            "hugetlb.2MB.max: 4194304",
            "hugetlb.2MB.rsvd.max: 4194304",
        ];
        assert_eq!(files(&all, &none), expected);
        assert!(files(&all, &all).is_empty() && !files(&none, &all).is_empty());
        let expected = [
            "cpuset.cpus:",
            "cpuset.mems:",
            "io.max: 8:16 rbps=max wbps=max riops=max wiops=max",
            "hugetlb.2MB.max: max",
            "hugetlb.2MB.rsvd.max: max",
        ];
        assert_eq!(files(&none, &all), expected);
        let update = json!({"cpu": {"cpus": "1"}, "blockIO": {"throttleReadBpsDevice": limit(0)}});
        let expected = ["cpuset.cpus: 1", "io.max: 8:16 rbps=max wbps=max riops=max wiops=9"];
        assert_eq!(files(&changed(all.clone(), update), &all), expected);
    }

    #[test]
    fn files_count_as_what_they_stand_for() {
        let unified = bounds(json!({"unified": {
            "io.max": "8:0 riops=333 wiops=444\n8:16 riops=555 rbps=max\nnonsense\n",
            "cpuset.cpus": "0", "cpuset.mems": "0", "hugetlb.1GB.max": "0", "memory.max": "1",
        }}));
        let expected = [
            "cpuset.cpus: 0",
            "cpuset.mems: 0",
            "io.max: 8:0 rbps=max wbps=max riops=333 wiops=444",
            "io.max: 8:16 rbps=max wbps=max riops=555 wiops=max",
            "hugetlb.1GB.max: 0",
            "hugetlb.1GB.rsvd.max: 0",
        ];
        assert_eq!(files(&unified, &Bounds::default()), expected);
        let more = changed(unified.clone(), json!({"unified": {"hugetlb.1GB.max": "max"}}));
        assert_eq!(files(&more, &unified), ["hugetlb.1GB.max: max", "hugetlb.1GB.rsvd.max: max"]);
    }

    #[test]
    fn weights_are_written_for_all_disks_and_for_single_ones() {
        let weights = |all: u16, of: &[(u32, u16)]| {
            let device = |&(minor, weight)| json!({"major": 7, "minor": minor, "weight": weight});
            let devices: Vec<_> = of.iter().map(device).collect();
            json!({"blockIO": {"weight": all, "weightDevice": devices}})
        };
        let none = Bounds::default();
        let some = bounds(weights(333, &[(1, 444), (2, 0)]));
        assert_eq!(
            files(&some, &none),
            [format!("{WEIGHTS}: default 333"), format!("{WEIGHTS}: 7:1 444")]
        );
        let update = changed(some.clone(), weights(0, &[(1, 222)]));
        assert_eq!(files(&update, &some), [format!("{WEIGHTS}: 7:1 222")]);
        assert_eq!(
            files(&none, &some),
            [format!("{WEIGHTS}: default 100"), format!("{WEIGHTS}: 7:1 default")]
        );
        let file = |text: &str| json!({"unified": {WEIGHTS: text}});
        assert_eq!(bounds(file("default 333\n7:1 444\n7:2 9 9\n")), some);
        assert_eq!(bounds(file("333")), bounds(weights(333, &[])));
        assert_eq!(changed(some.clone(), file("7:1 default")), bounds(weights(333, &[])));
        let two = Bounds::of_all(&[&some, &bounds(json!({}))]);
        assert_eq!(two, bounds(weights(433, &[(1, 544)])));
        let most = Bounds::of_all(&[&bounds(weights(600, &[])), &bounds(weights(700, &[]))]);
        assert_eq!(most, bounds(weights(1000, &[])));
    }

    #[test]
    fn without_bfq_a_weight_is_counted_otherwise_and_none_of_single_disks() {
        assert_eq!(without_bfq("default 750").as_deref(), Some("default 7475"));
        assert_eq!(without_bfq("default 10").as_deref(), Some("default 1"));
        assert_eq!(without_bfq("7:1 444"), None);
    }

    #[test]
    fn of_several_it_is_the_sum_of_what_each_has() {
        let limited = |cpus: &str, rate: u64| {
            bounds(json!({
                "cpu": {"cpus": cpus},
                "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": rate}]},
                "hugepageLimits": [{"pageSize": "2MB", "limit": rate}],
            }))
        };
        let of_all = |all: &[Bounds]| {
            files(&Bounds::of_all(&all.iter().collect::<Vec<_>>()), &Bounds::default())
        };
        let expected = [
            "cpuset.cpus: 0,2-3",
            "io.max: 8:0 rbps=5 wbps=max riops=max wiops=max",
            "hugetlb.2MB.max: 5",
            "hugetlb.2MB.rsvd.max: 5",
        ];
        assert_eq!(of_all(&[limited("0", 2), limited("2-3", 3)]), expected);
        assert!(of_all(&[limited("0", 2), Bounds::default()]).is_empty());
        assert!(of_all(&[]).is_empty());
    }
}
