//! Giving a function of the machine to a domain and taking it back, at boot and while domains run.
//!
//! Both take a while, for the resets in them, and EL2 does not wait: each is an [`Operation`] that is
//! carried on by steps. What is given away is undone if a step fails (`kernel::give`).
//!
//! Taking it back cannot fail half-way: it is off the bus and reaches nothing before the call waits for
//! its reset. If it is in one that its domain asked for, the end of that is waited for; no other one begins
//! meanwhile, so that no guest keeps a function by resetting it again and again.

use crate::domain::{self, Domain};
use crate::memory;
use crate::passthrough::{AssignError, Assigned, Look};
use crate::physical::{self, Physical, Resetting};
use crate::sched;
use crate::servers::{self, Leaving};
use alloc::sync::Arc;
use kernel::give::{self, Noise, Parts};
use kernel::steps::Advance;
use kernel::streams::Heard;
use pci::{ClaimError, Method, Progress, Wish};
use vpci::{Sbdf, Vendor};

/// How often it is looked whether a function that is wanted back is through with a reset that its domain
/// asked for, in milliseconds.
const RECALL: u32 = 5;

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
    /// A device model lets go of one.
    Leave(Leaving),
}

/// A function on its way to a domain.
pub(crate) struct Give(give::Give<Giving>);

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
    assigned: Option<Assigned>,
}

/// A function on its way back.
pub(crate) struct Take {
    physical: &'static Physical,
    domain: Arc<Domain>,
    slot: Sbdf,
    /// The domain that takes it is the one that has it.
    is_own: bool,
    /// What was taken; before, it is in a reset that its domain asked for.
    taken: Option<Taken>,
}

/// A function that is off the bus.
struct Taken {
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
            faults: manifest::MAX_FAULTS_DEFAULT,
            interrupts: manifest::MAX_INTERRUPTS_DEFAULT,
        };
        Give::new(domain, host, wish, look).map(Self::Give)
    }

    /// Starts to take a function off a domain's bus, and to make it free. `is_own` says that this domain
    /// is the one that wants it.
    pub(crate) fn take(domain: Arc<Domain>, slot: Sbdf, is_own: bool) -> Result<Self, AssignError> {
        if let Some(leaving) = servers::withdraw(&domain, slot) {
            return Ok(Self::Leave(leaving));
        }
        let physical = physical::get().ok_or(AssignError::NoPci)?;
        Ok(Self::Take(Take {
            physical,
            domain,
            slot,
            is_own,
            taken: None,
        }))
    }

    /// Takes the next step.
    pub(crate) fn step(&mut self) -> Result<Advance, AssignError> {
        let end = match self {
            Self::Give(give) => give.step(),
            Self::Take(take) => take.step(),
            Self::Leave(leaving) => leaving.step(),
        };
        if let Ok(Advance::Done) = end {
            memory::report();
        }
        end
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
        faults: function.max_faults.unwrap_or(manifest::MAX_FAULTS_DEFAULT),
        interrupts: function
            .max_interrupts
            .unwrap_or(manifest::MAX_INTERRUPTS_DEFAULT),
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
        Ok(Self(give::Give::new(Giving {
            physical,
            domain,
            host,
            wish,
            look,
            place: 0,
            index: 0,
            method: None,
            reset: None,
            assigned: None,
        })))
    }

    fn step(&mut self) -> Result<Advance, AssignError> {
        let end = self.0.go_on(sched::uptime());
        let Giving {
            domain, host, wish, ..
        } = self.0.parts();
        match &end {
            Ok(Advance::Wait(_)) => {}
            Ok(Advance::Done) => info!("domain {}: {} is {host}", domain.name(), wish.slot),
            Err(error) => error!("domain {} does not get {host}: {error}", domain.name()),
        }
        end
    }
}

impl Parts for Giving {
    type Error = AssignError;

    fn keep_slot(&mut self) -> Result<(), AssignError> {
        let bus = self.domain.pci.as_ref().ok_or(AssignError::NoBus)?;
        self.place = bus.lock().reserve(&self.domain, self.wish.slot)?;
        Ok(())
    }

    fn give_up_slot(&mut self) {
        if let Some(bus) = &self.domain.pci {
            bus.lock().give_up(&self.domain, self.wish.slot);
        }
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

    fn release(&mut self, sound: bool) {
        self.physical.owners.lock().release(self.index, sound);
    }

    fn reset(&mut self) -> Result<Advance, AssignError> {
        let progress = self
            .reset
            .as_mut()
            .map_or(Ok(Progress::Done), Resetting::step);
        if let Ok(Progress::Wait(milliseconds)) = progress {
            return Ok(Advance::Wait(milliseconds));
        }
        self.reset = None;
        progress.map_err(AssignError::Reset)?;
        Ok(Advance::Done)
    }

    fn listen(&mut self) -> Result<(), AssignError> {
        let dma = self.domain.dma.as_ref().ok_or(AssignError::NoIommu)?;
        self.physical
            .listen(self.index, self.look.faults, &self.domain, dma)
            .map_err(AssignError::Smmu)
    }

    fn heard(&mut self) -> Result<(), Noise<AssignError>> {
        match self.physical.heard(self.index) {
            Heard {
                faults: 0,
                lost: false,
            } => Ok(()),
            Heard { faults: 0, .. } => Err(Noise::Unsure(AssignError::Unheard)),
            Heard { faults, .. } => Err(Noise::Heard(AssignError::NotQuiet(faults))),
        }
    }

    fn detach(&mut self) {
        self.physical.detach(self.index);
    }

    fn make_model(&mut self) -> Result<(), AssignError> {
        let (slot, look) = (self.wish.slot, self.look);
        let assigned = Assigned::new(self.physical, self.index, &self.domain, slot, look)?;
        assigned.scrub(self.physical)?;
        let bus = self.domain.pci.as_ref().ok_or(AssignError::NoBus)?;
        bus.lock().set_aside(assigned.tables())?;
        self.assigned = Some(assigned);
        Ok(())
    }

    fn drop_model(&mut self) {
        if let (Some(bus), Some(assigned)) = (&self.domain.pci, self.assigned.take()) {
            bus.lock().give_back(assigned.tables());
        }
    }

    fn allocate_vectors(&mut self) -> Result<(), AssignError> {
        match &mut self.assigned {
            Some(assigned) => assigned.allocate_vectors(self.physical, self.domain.id),
            None => Ok(()),
        }
    }

    fn free_vectors(&mut self) {
        if let Some(assigned) = &mut self.assigned {
            assigned.free_vectors(self.physical);
        }
    }

    fn attach(&mut self) -> Result<(), AssignError> {
        let dma = self.domain.dma.as_ref().ok_or(AssignError::NoIommu)?;
        self.physical
            .attach(self.index, self.look.faults, &self.domain, dma)
            .map_err(AssignError::Smmu)
    }

    fn plug(&mut self) -> Result<(), AssignError> {
        let Some(assigned) = &mut self.assigned else {
            return Ok(());
        };
        let plugged = assigned.plug(&self.domain);
        plugged.map_err(|_| AssignError::NoMemory)
    }

    fn unplug(&mut self) {
        if let Some(assigned) = &mut self.assigned {
            assigned.unplug(&self.domain);
        }
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
    /// Takes the function off the bus, once it is in no reset that its domain asked for.
    fn begin(&self) -> Result<Option<Taken>, AssignError> {
        let Self {
            physical, domain, ..
        } = self;
        let mut bus = domain.pci.as_ref().ok_or(AssignError::NoBus)?.lock();
        let Some(index) = bus.recall(self.slot, self.is_own)? else {
            return Ok(None);
        };
        let method = physical.owners.lock().take_back(&physical.found, index);
        let method = method.map_err(|error| {
            bus.keep(self.slot);
            AssignError::Claim(error)
        })?;
        let taken = bus.take(domain, self.slot);
        drop(bus);
        if let Some(mut assigned) = taken {
            assigned.free_vectors(physical);
        }
        let reset = method.map(|method| Resetting::new(physical.found.reset(index, method)));
        Ok(Some(Taken { index, reset }))
    }

    fn step(&mut self) -> Result<Advance, AssignError> {
        if self.taken.is_none() {
            self.taken = self.begin()?;
        }
        let Some(Taken { index, reset }) = &mut self.taken else {
            return Ok(Advance::Wait(RECALL));
        };
        let (host, name) = (
            self.physical.found.devices()[*index].sbdf,
            self.domain.name(),
        );
        let progress = match reset {
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
        *reset = None;
        self.physical
            .owners
            .lock()
            .release(*index, progress.is_ok());
        info!("domain {name}: {} is {host} no more", self.slot);
        progress.map_err(|error| {
            error!("{host}, which domain {name} had, goes to nobody: {error}");
            AssignError::Reset(error)
        })?;
        Ok(Advance::Done)
    }
}
