//! Giving a function of the machine to a domain and taking it back, at boot and while domains run.
//!
//! Both take a while, for the resets in them, and EL2 does not wait: each is an [`Operation`] that is
//! carried on by steps. What is given away is undone if a step fails (`kernel::steps`):
//!
//! ```text
//!   step      done                                       undone
//!   Slot      the guest's slot is kept, and empty        given up
//!   Claim     the function is the domain's to have       nobody's, or broken if its reset failed
//!   Reset     it is as at power-on, disabled
//!   Listen    what it sends is refused and counted:      refused
//!             it sends nothing
//!   Model     what the guest is to see of it; what a
//!             reset keeps of the last owner's is zero
//!   Vectors   LPIs for its messages                      freed
//!   Attach    it reaches the domain's memory             refused
//!   Pin       its interrupt pin is wired up            taken off
//!   Show      it is on the domain's bus
//! ```
//!
//! Taking it back cannot fail half-way: it is off the bus and reaches nothing before the call waits for
//! its reset.

use crate::domain::{self, Domain};
use crate::passthrough::{AssignError, Assigned};
use crate::physical::{self, Physical, Resetting};
use crate::sched::Due;
use alloc::sync::Arc;
use kernel::steps::{Act, Advance, Sequence};
use pci::{ClaimError, Method, Progress, Wish};
use vpci::{Sbdf, Vendor};

/// How long a function is listened to, in milliseconds.
const LISTEN: u32 = 10;

/// Something that is on its way.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each call that waits, and it is on the heap"
)]
pub(crate) enum Operation {
    /// A function goes to a domain.
    Give(Give),
    /// It comes back.
    Take(Take),
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Slot,
    Claim,
    Reset,
    Listen,
    Model,
    Vectors,
    Attach,
    Pin,
    Show,
}

const GIVE: &[Step] = &[
    Step::Slot,
    Step::Claim,
    Step::Reset,
    Step::Listen,
    Step::Model,
    Step::Vectors,
    Step::Attach,
    Step::Pin,
    Step::Show,
];

/// A function on its way to a domain.
pub(crate) struct Give {
    sequence: Sequence<Step>,
    giving: Giving,
}

/// What a domain is to have of a function.
#[derive(Clone, Copy)]
struct Look {
    /// Whether it sees vendor-specific capabilities.
    vendor: Vendor,
    /// Faults in a second that are no storm.
    allowed: u32,
}

/// What the steps have come to.
struct Giving {
    physical: &'static Physical,
    domain: Arc<Domain>,
    host: Sbdf,
    wish: Wish,
    look: Look,
    /// Its place on the domain's bus.
    place: usize,
    /// Its place in the machine's hierarchy.
    index: usize,
    method: Option<Method>,
    reset: Option<Resetting>,
    /// Nothing has shown that it is not as it should be.
    sound: bool,
    listening: Option<Due>,
    assigned: Option<Assigned>,
}

/// A function on its way back.
pub(crate) struct Take {
    physical: &'static Physical,
    domain: Arc<Domain>,
    slot: Sbdf,
    index: usize,
    reset: Option<Resetting>,
}

impl Operation {
    /// Starts to give a function to a domain.
    pub(crate) fn give(
        domain: Arc<Domain>,
        host: Sbdf,
        slot: Sbdf,
        allow_no_reset: bool,
        vendor: Vendor,
    ) -> Result<Self, AssignError> {
        let wish = Wish {
            domain: domain.id,
            slot,
            at_boot: false,
            allow_no_reset,
        };
        let look = Look {
            vendor,
            allowed: manifest::MAX_FAULTS_DEFAULT,
        };
        Give::new(domain, host, wish, look).map(Self::Give)
    }

    /// Takes a function off a domain's bus, and starts to make it free.
    pub(crate) fn take(domain: Arc<Domain>, slot: Sbdf) -> Result<Self, AssignError> {
        Take::new(domain, slot).map(Self::Take)
    }

    /// Takes the next step.
    pub(crate) fn step(&mut self) -> Result<Advance, AssignError> {
        match self {
            Self::Give(give) => give.step(),
            Self::Take(take) => take.step(),
        }
    }
}

/// Gives a domain that has not started a function that it is configured with; `wait` waits for some
/// milliseconds. It is said in the log how that went.
#[cold]
pub(crate) fn at_boot(
    domain: &Arc<Domain>,
    host: Sbdf,
    function: &manifest::Function,
    mut wait: impl FnMut(u32),
) {
    let wish = Wish {
        domain: domain.id,
        slot: function.slot,
        at_boot: true,
        allow_no_reset: function.allow_no_reset,
    };
    let look = Look {
        vendor: if function.vendor_capabilities {
            Vendor::Shown
        } else {
            Vendor::Hidden
        },
        allowed: function.max_faults.unwrap_or(manifest::MAX_FAULTS_DEFAULT),
    };
    let mut give = match Give::new(domain.clone(), host, wish, look) {
        Ok(give) => give,
        Err(error) => {
            error!("domain {} does not get {host}: {error}", domain.name());
            return;
        }
    };
    while let Ok(Advance::Wait(milliseconds)) = give.step() {
        wait(milliseconds);
    }
}

impl Give {
    fn new(domain: Arc<Domain>, host: Sbdf, wish: Wish, look: Look) -> Result<Self, AssignError> {
        let physical = physical::get().ok_or(AssignError::NoPci)?;
        if domain.pci.is_none() {
            return Err(AssignError::NoBus);
        }
        if domain.dma.is_none() {
            return Err(AssignError::NoIommu);
        }
        Ok(Self {
            sequence: Sequence::new(GIVE),
            giving: Giving {
                physical,
                domain,
                host,
                wish,
                look,
                place: 0,
                index: 0,
                method: None,
                reset: None,
                sound: true,
                listening: None,
                assigned: None,
            },
        })
    }

    fn step(&mut self) -> Result<Advance, AssignError> {
        let end = self.sequence.go_on(&mut self.giving);
        let Giving {
            domain, host, wish, ..
        } = &self.giving;
        match &end {
            Ok(Advance::Wait(_)) => {}
            Ok(Advance::Done) => info!("domain {}: {} is {host}", domain.name(), wish.slot),
            Err(error) => error!("domain {} does not get {host}: {error}", domain.name()),
        }
        end
    }
}

impl Act<Step> for Giving {
    type Error = AssignError;

    fn act(&mut self, step: Step) -> Result<Advance, AssignError> {
        match step {
            Step::Slot => self.keep_slot()?,
            Step::Claim => self.claim()?,
            Step::Reset => return self.reset(),
            Step::Listen => return self.listen(),
            Step::Model => {
                let assigned = Assigned::new(
                    self.physical,
                    self.index,
                    &self.domain,
                    self.wish.slot,
                    self.look.vendor,
                )?;
                assigned.scrub(self.physical)?;
                self.assigned = Some(assigned);
            }
            Step::Vectors => {
                if let Some(assigned) = &mut self.assigned {
                    assigned.allocate_vectors(self.physical, self.domain.id)?;
                }
            }
            Step::Attach => self.attach()?,
            Step::Pin => {
                if let Some(assigned) = &mut self.assigned {
                    let plugged = assigned.plug(&self.domain);
                    plugged.map_err(|_| AssignError::NoMemory)?;
                }
            }
            Step::Show => self.show()?,
        }
        Ok(Advance::Done)
    }

    fn undo(&mut self, step: Step) {
        match step {
            Step::Slot => {
                if let Some(bus) = &self.domain.pci {
                    bus.lock().give_up(&self.domain, self.wish.slot);
                }
            }
            Step::Claim => {
                let mut owners = self.physical.owners.lock();
                owners.release(self.index, self.sound);
            }
            Step::Listen | Step::Attach => self.physical.detach(self.index),
            Step::Model => self.assigned = None,
            Step::Vectors => {
                if let Some(assigned) = &mut self.assigned {
                    assigned.free_vectors(self.physical);
                }
            }
            Step::Pin => {
                if let Some(assigned) = &mut self.assigned {
                    assigned.unplug(&self.domain);
                }
            }
            // It stays reset and disabled; and on the bus it is last of all.
            Step::Reset | Step::Show => {}
        }
    }
}

impl Giving {
    fn keep_slot(&mut self) -> Result<(), AssignError> {
        let bus = self.domain.pci.as_ref().ok_or(AssignError::NoBus)?;
        self.place = bus.lock().reserve(&self.domain, self.wish.slot)?;
        Ok(())
    }

    fn claim(&mut self) -> Result<(), AssignError> {
        let physical = self.physical;
        let index = physical.found.position(self.host);
        let index = index.ok_or(AssignError::Claim(ClaimError::NotThere))?;
        if !physical.is_behind_smmu(index) {
            return Err(AssignError::NotIsolated);
        }
        let planned = |sbdf| {
            self.wish
                .at_boot
                .then(|| domain::configured_with(sbdf))
                .flatten()
        };
        let mut owners = physical.owners.lock();
        let claimed = owners.claim(
            &physical.found,
            &physical.groups,
            self.host,
            &self.wish,
            planned,
        );
        drop(owners);
        (self.index, self.method) = claimed.map_err(AssignError::Claim)?;
        self.reset = self
            .method
            .map(|method| Resetting::new(physical.found.reset(self.index, method)));
        Ok(())
    }

    fn reset(&mut self) -> Result<Advance, AssignError> {
        let Some(reset) = &mut self.reset else {
            return Ok(Advance::Done);
        };
        match reset.step() {
            Ok(Progress::Wait(milliseconds)) => return Ok(Advance::Wait(milliseconds)),
            Ok(Progress::Done) => {}
            Err(error) => {
                self.sound = false;
                self.reset = None;
                return Err(AssignError::Reset(error));
            }
        }
        self.reset = None;
        Ok(Advance::Done)
    }

    fn listen(&mut self) -> Result<Advance, AssignError> {
        let (physical, index) = (self.physical, self.index);
        let Some(due) = &self.listening else {
            let dma = self.domain.dma.as_ref().ok_or(AssignError::NoIommu)?;
            let listens = physical.listen(index, self.look.allowed, &self.domain, dma);
            if let Err(error) = listens {
                physical.detach(index);
                return Err(AssignError::Smmu(error));
            }
            let mut due = Due::default();
            due.after(LISTEN);
            self.listening = Some(due);
            return Ok(Advance::Wait(LISTEN));
        };
        if let Some(left) = due.left() {
            return Ok(Advance::Wait(left));
        }
        match physical.heard(index) {
            0 => Ok(Advance::Done),
            times => {
                self.sound = false;
                physical.detach(index);
                Err(AssignError::NotQuiet(times))
            }
        }
    }

    fn attach(&self) -> Result<(), AssignError> {
        let dma = self.domain.dma.as_ref().ok_or(AssignError::NoIommu)?;
        let attached = self
            .physical
            .attach(self.index, self.look.allowed, &self.domain, dma);
        attached.map_err(|error| {
            self.physical.detach(self.index);
            AssignError::Smmu(error)
        })
    }

    fn show(&mut self) -> Result<(), AssignError> {
        let bus = self.domain.pci.as_ref().ok_or(AssignError::NoBus)?;
        let Some(assigned) = self.assigned.take() else {
            return Ok(());
        };
        self.assigned = bus.lock().put(&self.domain, self.place, assigned);
        if self.assigned.is_some() {
            return Err(AssignError::Gone);
        }
        self.physical.owners.lock().settle(self.index);
        Ok(())
    }
}

impl Take {
    fn new(domain: Arc<Domain>, slot: Sbdf) -> Result<Self, AssignError> {
        let physical = physical::get().ok_or(AssignError::NoPci)?;
        let mut bus = domain.pci.as_ref().ok_or(AssignError::NoBus)?.lock();
        let index = bus.given(slot)?.index();
        let mut owners = physical.owners.lock();
        let method = owners
            .take_back(&physical.found, index)
            .map_err(AssignError::Claim)?;
        drop(owners);
        let taken = bus.take(&domain, slot);
        drop(bus);
        if let Some(mut assigned) = taken {
            assigned.free_vectors(physical);
        }
        let reset = method.map(|method| Resetting::new(physical.found.reset(index, method)));
        Ok(Self {
            physical,
            domain,
            slot,
            index,
            reset,
        })
    }

    fn step(&mut self) -> Result<Advance, AssignError> {
        let (host, name) = (
            self.physical.found.devices()[self.index].sbdf,
            self.domain.name(),
        );
        let progress = match &mut self.reset {
            Some(reset) => reset.step(),
            None => {
                // Until it is given again nobody reaches it, nor it anybody.
                info!("{host} comes back without a reset");
                Ok(Progress::Done)
            }
        };
        if let Ok(Progress::Wait(milliseconds)) = progress {
            return Ok(Advance::Wait(milliseconds));
        }
        self.reset = None;
        self.physical
            .owners
            .lock()
            .release(self.index, progress.is_ok());
        info!("domain {name}: {} is {host} no more", self.slot);
        progress.map_err(|error| {
            error!("{host}, which domain {name} had, goes to nobody: {error}");
            AssignError::Reset(error)
        })?;
        Ok(Advance::Done)
    }
}
