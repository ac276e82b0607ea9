//! The date that chat templates ask for with `strftime_now`, in UTC.

use std::time::{Duration, SystemTime};

/// A format that `strftime_now` does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrftimeError {
    /// There is no such directive here.
    #[error("strftime_now does not know %{directive}")]
    UnknownDirective {
        /// The letter after `%`.
        directive: char,
    },
    /// The format ends with `%`.
    #[error("the format of strftime_now ends with %")]
    Incomplete,
}

/// A moment as `format` says, after Python's `strftime` in the C locale. Times before 1970 count as 1970.
pub(crate) fn strftime(now: SystemTime, format: &str) -> Result<String, StrftimeError> {
    let moment = Moment::new(
        now.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO),
    );
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match characters.next().ok_or(StrftimeError::Incomplete)? {
            '-' => {
                let directive = characters.next().ok_or(StrftimeError::Incomplete)?;
                let padded = moment.field(directive)?;
                let bare = padded.trim_start_matches(['0', ' ']);
                text.push_str(if bare.is_empty() { "0" } else { bare });
            }
            directive => text.push_str(&moment.field(directive)?),
        }
    }
    Ok(text)
}

/// A moment in UTC, by the Gregorian calendar.
struct Moment {
    year: u64,
    /// From 1.
    month: u64,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// From 0, Sunday.
    weekday: u64,
    second_of_day: u64,
}

impl Moment {
    fn new(since_epoch: Duration) -> Self {
        let (mut days, second_of_day) = (since_epoch.as_secs() / 86_400, since_epoch.as_secs() % 86_400);
        // 1970-01-01 was a Thursday.
        let weekday = (days + 4) % 7;
        let mut year = 1970 + days / DAYS_IN_400_YEARS * 400;
        days %= DAYS_IN_400_YEARS;
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let day_of_year = days + 1;
        let mut month = 1;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: days + 1,
            day_of_year,
            weekday,
            second_of_day,
        }
    }

    fn field(&self, directive: char) -> Result<String, StrftimeError> {
        let hour = self.second_of_day / 3600;
        let hour_of_half = (hour + 11) % 12 + 1;
        let (minute, second) = (self.second_of_day / 60 % 60, self.second_of_day % 60);
        let (month, weekday) = (name(&MONTHS, self.month - 1), name(&WEEKDAYS, self.weekday));
        Ok(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'w' => self.weekday.to_string(),
            'H' => format!("{hour:02}"),
            'I' => format!("{hour_of_half:02}"),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            directive => return Err(StrftimeError::UnknownDirective { directive }),
        })
    }
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn name<const COUNT: usize>(names: &[&'static str; COUNT], index: u64) -> &'static str {
    usize::try_from(index)
        .ok()
        .and_then(|index| names.get(index))
        .expect("calendar fields are in range")
}

const DAYS_IN_400_YEARS: u64 = 146_097;
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, format: &str) -> String {
        strftime(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), format).unwrap()
    }

    /// The expected texts are those of Python's `datetime.fromtimestamp(.., timezone.utc).strftime`.
    #[test]
    fn formats_agree_with_python() {
        assert_eq!(
            at(0, "%Y-%m-%d %H:%M:%S %A %j"),
            "1970-01-01 00:00:00 Thursday 001"
        );
        assert_eq!(at(951_782_400, "%d %b %Y %a %j"), "29 Feb 2000 Tue 060");
        assert_eq!(
            at(1_735_689_599, "%-d %B %y %I:%M %p %j"),
            "31 December 24 11:59 PM 366"
        );
        assert_eq!(at(4_107_542_400, "%F %T"), "2100-03-01 00:00:00");
        assert_eq!(
            at(1_783_000_800, "%e.%-m. %w %z %Z 100%%"),
            " 2.7. 4 +0000 UTC 100%"
        );
    }

    #[test]
    fn unknown_directive_is_named() {
        let error = strftime(SystemTime::UNIX_EPOCH, "%Y %Q").unwrap_err();
        assert_eq!(error, StrftimeError::UnknownDirective { directive: 'Q' });
        assert_eq!(
            strftime(SystemTime::UNIX_EPOCH, "50%").unwrap_err(),
            StrftimeError::Incomplete
        );
    }
}
