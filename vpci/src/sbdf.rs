//! SBDF: the name of a function.
//!
//! ```text
//!   31            16 15         8 7      3 2    0
//!  +----------------+------------+--------+------+
//!  |    segment     |    bus     | device | func |
//!  +----------------+------------+--------+------+
//!                    `------ requester ID ------'
//! ```
//!
//! PCI Express Base Specification, section 2.2.6.2 (requester ID); PCI Firmware Specification,
//! section 4.1 (segment groups).

use core::fmt;
use core::str::FromStr;

/// Segment, bus, device and function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Sbdf(u32);

impl Sbdf {
    /// Devices on a bus.
    pub const DEVICES: u8 = 32;
    /// Functions of a device.
    pub const FUNCTIONS: u8 = 8;

    /// Names a function; `None` if a bus has no such device, or a device no such function.
    #[must_use]
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device >= Self::DEVICES || function >= Self::FUNCTIONS {
            return None;
        }
        let rid = (bus as u16) << 8 | (device as u16) << 3 | function as u16;
        Some(Self::from_rid(segment, rid))
    }

    /// Names the function of `segment` that has the requester ID `rid`.
    #[must_use]
    pub const fn from_rid(segment: u16, rid: u16) -> Self {
        Self((segment as u32) << 16 | rid as u32)
    }

    /// Returns the requester ID: what of the name travels on the bus.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    pub const fn rid(self) -> u16 {
        self.0 as u16
    }

    /// Returns the segment.
    #[must_use]
    pub const fn segment(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Returns the bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.rid() >> 8) as u8
    }

    /// Returns the device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.device_function() >> 3
    }

    /// Returns the function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.device_function() & 7
    }

    /// Returns device and function as one number, as the requester ID holds them.
    #[must_use]
    pub const fn device_function(self) -> u8 {
        (self.rid() & 0xff) as u8
    }

    /// Returns function `function` of the same device; `None` if a device has no such function.
    #[must_use]
    pub const fn sibling(self, function: u8) -> Option<Self> {
        Self::new(self.segment(), self.bus(), self.device(), function)
    }
}

/// Segment in the upper half, requester ID in the lower: how hypercalls and device trees write it.
impl From<Sbdf> for u32 {
    fn from(sbdf: Sbdf) -> Self {
        sbdf.0
    }
}

/// Every number names a function.
impl From<u32> for Sbdf {
    fn from(number: u32) -> Self {
        Self(number)
    }
}

impl fmt::Display for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (segment, bus) = (self.segment(), self.bus());
        let (device, function) = (self.device(), self.function());
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl fmt::Debug for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not the name of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseSbdfError {
    /// It has not the form `segment:bus:device.function` or `bus:device.function`.
    Form,
    /// The segment is not one to four hexadecimal digits.
    Segment,
    /// The bus is not one or two hexadecimal digits.
    Bus,
    /// The device is not a hexadecimal number from 0 to 1f.
    Device,
    /// The function is not a digit from 0 to 7.
    Function,
}

impl fmt::Display for ParseSbdfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "not of the form 0000:00:1f.3 or 00:1f.3",
            Self::Segment => "the segment is not one to four hexadecimal digits",
            Self::Bus => "the bus is not one or two hexadecimal digits",
            Self::Device => "the device is not a hexadecimal number from 0 to 1f",
            Self::Function => "the function is not a digit from 0 to 7",
        })
    }
}

impl core::error::Error for ParseSbdfError {}

/// Reads `0000:00:1f.3`, or `00:1f.3` for segment 0; the numbers are hexadecimal.
impl FromStr for Sbdf {
    type Err = ParseSbdfError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, function) = text.rsplit_once('.').ok_or(ParseSbdfError::Form)?;
        let (path, device) = path.rsplit_once(':').ok_or(ParseSbdfError::Form)?;
        let (segment, bus) = path.rsplit_once(':').unwrap_or(("0", path));
        if segment.contains(':') {
            return Err(ParseSbdfError::Form);
        }
        let segment = hexadecimal(segment, 4).ok_or(ParseSbdfError::Segment)?;
        let bus = hexadecimal(bus, 2).ok_or(ParseSbdfError::Bus)?;
        let device = hexadecimal(device, 2)
            .filter(|&number| number < Self::DEVICES.into())
            .ok_or(ParseSbdfError::Device)?;
        let function = hexadecimal(function, 1)
            .filter(|&number| number < Self::FUNCTIONS.into())
            .ok_or(ParseSbdfError::Function)?;
        Ok(Self::from_rid(segment, bus << 8 | device << 3 | function))
    }
}

/// Reads one to `digits` hexadecimal digits, and nothing else.
fn hexadecimal(text: &str, digits: usize) -> Option<u16> {
    let sound = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if sound {
        u16::from_str_radix(text, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn parts_come_back() {
        for rid in (0..=u16::MAX).step_by(if cfg!(miri) { 0x101 } else { 1 }) {
            let name = Sbdf::from_rid(0x1234, rid);
            let again = Sbdf::new(0x1234, name.bus(), name.device(), name.function());
            assert_eq!(again, Some(name));
            assert_eq!((name.segment(), name.rid()), (0x1234, rid));
            assert_eq!(Sbdf::from(u32::from(name)), name);
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_name_has_32_devices_and_8_functions() {
        let cases = [
            // device, function, exists
            ( 0,       0,        true),
            (31,       7,        true),
            (32,       0,        false),
            ( 0,       8,        false),
        ];
        for (device, function, exists) in cases {
            assert_eq!(Sbdf::new(0, 0, device, function).is_some(), exists, "{device}.{function}");
        }
        let name = Sbdf::from_rid(0, 0x00fb);
        assert_eq!(name.sibling(0), Some(Sbdf::from_rid(0, 0x00f8)));
        assert_eq!(name.sibling(8), None);
    }

    #[test]
    #[rustfmt::skip]
    fn names_are_read_as_people_type_them() {
        use ParseSbdfError::{Bus, Device, Form, Function, Segment};
        let cases = [
            ("0000:00:1f.3",  Ok(0x0000_00fb)),
            ("00:1f.3",       Ok(0x0000_00fb)),
            ("ABCD:fe:01.7",  Ok(0xabcd_fe0f)),
            ("1:2:3.4",       Ok(0x0001_021c)),
            ("0:0.0",         Ok(0x0000_0000)),
            ("",              Err(Form)),
            ("00",            Err(Form)),
            ("1f.3",          Err(Form)),
            ("0:0:0:0.0",     Err(Form)),
            ("10000:00:00.0", Err(Segment)),
            (":00:00.0",      Err(Segment)),
            ("100:00.0",      Err(Bus)),
            ("+1:00.0",       Err(Bus)),
            (":00.0",         Err(Bus)),
            ("00:20.0",       Err(Device)),
            ("00:.0",         Err(Device)),
            ("00:0g.0",       Err(Device)),
            ("00:00.8",       Err(Function)),
            ("00:00.00",      Err(Function)),
            ("00:00.",        Err(Function)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Sbdf>().map(u32::from), expected, "{text}");
        }
        assert_eq!(std::format!("{:?}", Sbdf::from_rid(1, 0x00fb)), "0001:00:1f.3");
        for error in [Form, Segment, Bus, Device, Function] {
            assert!(!error.to_string().is_empty());
        }
    }
}
