"""One program on one multiprocessor: partitions that take turns, barriers, and copies that end later than they began.

Who may touch shared memory is decided by order, not by luck. Each partition and each barrier counts its steps, and a
partition's clock says how many steps of each of the others it knows to be over: it learns that from the barriers it has
waited for. An access is a fault unless its partition knows that all accesses in its way are over, however the
simulated run went (L. Lamport, Time, Clocks, and the Ordering of Events, 1978; vector clocks).

Times are toys, which decide who goes first. With a seed, each partition has a pace of its own.
"""
import linecache
import random
import sys
import textwrap
import traceback
from collections import namedtuple

import numpy as np
from greenlet import getcurrent, greenlet

MARK = "__simulated__"                                   # a name in the globals of simulated functions
MOST_TURNS = 10**6                                       # of one program: a loop that never ends is a fault, too

# what a unit did, from when to when in toy clocks, for which function, and how many products that partition had under way
Event = namedtuple("Event", "unit partition begin end label function pending")


class Fault(Exception):
    """Fault(sentence, *places): what a kernel does wrong, and who is at which line."""

    def __str__(self):
        sentence, *places = self.args
        return "\n".join([textwrap.fill(sentence, 98), *(textwrap.shorten(f"  {place}", 98, placeholder=" ...")
                                                        for place in places)])


def line_of(frame, number=None):
    """"line 7 in consume: x = tile.load(layout)"."""
    number = number or frame.f_lineno
    text = linecache.getline(frame.f_code.co_filename, number).split("  # ")[0].strip()
    return f"line {number} in {frame.f_code.co_name}: {text}"


def kernel_frames(frame):
    """The frames of a call that execute the kernel's text, from the outside in."""
    found = []
    while frame:
        if MARK in frame.f_globals:
            found.insert(0, frame)
        frame = frame.f_back
    return found


class Clock(dict):
    """{who: how many steps of theirs are known to be over}."""

    def learn(self, other):
        for who, step in other.items():
            self[who] = max(self.get(who, 0), step)

    def knows(self, step):
        """Whether a step, (who, number), is known to be over. None is a step that has not come yet."""
        return step is not None and self.get(step[0], 0) >= step[1]


class Access:
    """Someone reads or writes a part of shared memory. `over` is the step with which that ends, None until it has ended.

    The copy engine and the matrix unit see what threads wrote only behind a fence: `engine` says who this is.
    """

    def __init__(self, tile, what, writes, engine, until=None):
        self.data, self.nbytes, self.what, self.writes, self.engine = tile.data, tile.nbytes, what, writes, engine
        self.until = until                               # (barrier, phase) that tells of its end, of a copy
        self.over, self.fences = None, []
        self.partition = machine.active
        self.place = machine.here()


class Memory:
    """An allocation of shared memory, the accesses that still matter, and the barriers in it by their place."""

    def __init__(self, data, nbytes):
        self.data, self.nbytes, self.accesses, self.barriers = data, nbytes, [], {}


class Barrier:
    """A phase ends when all arrivals and all expected bytes have come."""

    def __init__(self, count):
        self.count = self.missing = count                # arrivals of this phase
        self.bytes = 0                                   # expected, less those that have come
        self.phase = 0                                   # how many are over
        self.copies = False                              # whether copies are counted here
        self.doubt = ()                                  # of an arrival that may count for the wrong phase
        self.by, self.once = [], False                   # who has arrived in this phase; each once, in the one before?
        self.arrived, self.known = Clock(), Clock()      # what is known to those who arrived; to those who waited

    def arrive(self, p, count, nbytes):
        _, before, alone = p.arrivals.get(self, (0, 0, True))          # the phase of p's last arrival, and whether that ended it
        unsure = self.once and not alone and not p.clock.knows((self, before + 1))
        if self.missing < count or unsure and nbytes:
            raise Fault(machine.one_too_many(self, nbytes))
        if unsure and not self.doubt:
            self.doubt = (f"{p.name} arrives at {machine.name(self)} again without knowing that phase {before} is over, for "
                          f"which it has arrived: who waits there may be told too early", machine.here())
        p.arrivals[self] = p.clock[p], self.phase, count == self.count and not nbytes
        self.by += [p] * count
        self.missing, self.bytes = self.missing - count, self.bytes + nbytes
        self.arrived.learn(p.clock)
        self.check()

    def deliver(self, access):
        """The bytes of a copy have come."""
        access.over = self, self.phase + 1
        self.bytes -= access.nbytes
        self.check(access.place)

    def check(self, *places):
        if self.missing == 0 and self.bytes < 0:
            raise Fault(f"{machine.name(self)} was told to expect {-self.bytes} bytes less in phase {self.phase} than "
                        f"are copied, so that the phase ends too early", *places)
        if self.missing == self.bytes == 0:
            self.phase, self.missing = self.phase + 1, self.count
            self.by, self.once = [], len(set(self.by)) == len(self.by)
            self.arrived[self] = self.phase
            self.known.learn(self.arrived)
            for p in machine.partitions:                 # whoever waited goes on from now
                if p.waits and p.waits[0] is self:
                    p.time = max(p.time, machine.now)


class Partition:
    """Warps that run the same code: a coroutine, its time, and what it knows of the others."""

    def __init__(self, name, function, arguments, clock, time):
        self.name, self.clock, self.time = name, Clock({**clock, self: 1}), time
        self.ready, self.waits = (lambda: True), None    # whether it may go on; the (barrier, phase) that it waits for
        self.waited, self.arrivals = {}, {}              # by barrier: (phase, step) of the last wait; (step, phase, …)
        self.products, self.stores, self.work = [], [], 0           # not waited for yet; how much was done
        self.pace = 10 ** machine.random.uniform(-1, 1) if machine.random else 1
        self.greenlet = greenlet(lambda: self.run(function, arguments), machine.hub)

    def run(self, function, arguments):
        np.seterr(all="ignore")                          # in this coroutine only: NaN and infinity are data
        try:
            self.result = function(*arguments)
        except Fault as fault:
            steps = [step for step in traceback.walk_tb(fault.__traceback__) if MARK in step[0].f_globals]
            raise Fault(*fault.args, f"{self.name}, {line_of(*steps[-1])}") from None

    def step(self):
        """The step that this partition is in."""
        return self, self.clock[self]

    def frames(self):
        return kernel_frames(sys._getframe() if getcurrent() is self.greenlet else self.greenlet.gr_frame)


class Machine:
    """The program that runs. There is one, `machine`, since programs run one after another."""

    def run(self, function, title, program, programs, seed):
        """Run one program, `function`, to its end. Fault, in a sentence that begins with `title`, if it goes wrong."""
        self.program, self.programs, self.hub = program, programs, getcurrent()
        self.random = random.Random(seed) if seed is not None else None
        self.memory, self.flying, self.events, self.units, self.now, self.turns = [], [], [], {}, 0, 0
        self.partitions = [Partition(function.__name__, function, (), {}, 0)]
        try:
            while any(not p.greenlet.dead for p in self.partitions):
                self.advance()
            self.finish()
        except Fault as fault:
            raise Fault(f"{title}: {fault.args[0]}", *fault.args[1:]) from None

    def advance(self):
        """Let whoever is earliest go on: a partition that may, or a copy that lands."""
        free = [(p.time, p) for p in self.partitions if not p.greenlet.dead and p.ready()]
        step = min(free + self.flying, key=lambda each: each[0], default=None)
        self.turns += 1
        if step is None:
            raise Fault("deadlock, nobody can go on", *filter(None, map(self.state, self.partitions)))
        if self.turns > MOST_TURNS:
            raise Fault(f"after {MOST_TURNS} steps the program is not over")
        self.now, chosen = step
        if step in self.flying:
            self.flying.remove(step)
            chosen()
        else:
            self.active = chosen
            chosen.greenlet.switch()

    def finish(self):
        """Nothing may be under way when the program ends."""
        for access in (access for memory in self.memory for access in memory.accesses):
            if not any(p.clock.knows(access.over) for p in self.partitions):
                raise Fault(f"the program ends, and nobody has waited for {access.what}", access.place)

    def turn(self, ready=lambda: True):
        """Give way to whoever is earlier. This partition goes on as soon as it is ready()."""
        self.active.ready = ready
        self.hub.switch()

    # ------------------------------------------------------------ toy times

    def spend(self, clocks, unit=None, label=None, delay=0):
        """Let the active partition work for so many clocks; or a unit that all share: returns when that will end."""
        p = self.active
        factor = p.pace * self.random.uniform(0.5, 2) if self.random else 1
        if unit is None:
            p.time, p.work = p.time + clocks * factor, p.work + 1
            return p.time
        begin = max(p.time + delay * factor, self.units.get(unit, 0))
        self.units[unit] = begin + clocks * factor
        function = p.frames()[-1].f_code.co_name
        self.events.append(Event(unit, p.name, begin, self.units[unit], label, function, len(p.products)))
        return self.units[unit]

    # ------------------------------------------------------------ who may touch what

    def access(self, tile, what, writes, engine=False, until=None):
        """Note an access by the active partition, or by an engine that it starts; a Fault if it may meet another."""
        new, p = Access(tile, what, writes, engine, until), self.active
        near = [old for old in tile.memory.accesses if np.shares_memory(old.data, tile.data)]
        if not writes and not any(old.writes for old in near):
            raise Fault(f"{what} reads {self.name(tile)}, and nobody has written there yet{self.at_once(tile, p)}")
        meets = [old for old in near if (old.writes or writes) and not p.clock.knows(old.over)]
        if meets:
            old = min(meets, key=lambda old: old.writes)               # those who read, before those who write
            why = self.not_handed_on(tile, p, old) if writes else self.not_waited(tile, p, old)
            raise Fault(f"{what} {'overwrites' if writes else 'reads'} {self.name(tile)}, and {old.what} may still be "
                        f"{'writing' if old.writes else 'reading'} it: {why}", old.place)
        for old in near:
            if old.writes and engine and not old.engine and not any(map(p.clock.knows, old.fences)):
                raise Fault(f"{what} may not see what {old.what} wrote into {self.name(tile)}: there is no "
                            f"fence_async_shared() between them", old.place)
        tile.memory.accesses = [new] + [old for old in tile.memory.accesses if not (
            old in near and p.clock.knows(old.over) and (writes or not old.writes) and old.data.size <= tile.data.size)]
        new.over = None if engine else p.step()
        return new

    def fence(self):
        """What the active partition knows to be written is visible to the engines of those who know of the fence."""
        for access in (access for memory in self.memory for access in memory.accesses):
            if access.writes and self.active.clock.knows(access.over):
                access.fences.append(self.active.step())

    def arrive(self, barrier, count=1, nbytes=0):
        barrier.arrive(self.active, count, nbytes)
        self.active.clock[self.active] += 1              # what comes next is another step, which they do not know of

    def wait(self, barrier, parity):
        """Wait for the phase of this parity that was waited for last, or for the next one. -1 counts as over."""
        p = self.active
        last = p.waited.get(barrier, (-1, 0))[0]
        phase = last + (last % 2 != parity)
        p.waits = barrier, phase
        self.turn(lambda: barrier.phase > phase)
        if barrier.phase > phase + 1 == 0:
            raise Fault(f"{p.name} waits for {self.name(barrier)} with parity 1, and has not waited for phase 0: in phase 0 this "
                        f"wait returns at once")
        if barrier.phase > phase + 1:
            raise Fault(f"phase {phase} of {self.name(barrier)} is over, and so is the next one: {p.name} is a whole "
                        f"phase behind, and parity {parity} now means phase {barrier.phase}")
        if barrier.doubt:
            raise Fault(*barrier.doubt)
        p.waits, p.waited[barrier] = None, (phase, p.clock[p])
        p.clock.learn(barrier.known)

    # ------------------------------------------------------------ what to say

    def at_once(self, tile, p):
        """What partition p waited for in vain, since that counts as over from the beginning."""
        vain = [name for name, b in self.siblings(tile) if p.waited.get(b, (0, 0))[0] == -1]
        return f": {p.name} has waited for phase -1 of {vain[0]}, which counts as over" if vain else ""

    def not_waited(self, tile, p, old):
        """Why partition p does not know that a write is over."""
        if not old.until:
            return f"{p.name} has waited for nothing that comes after it"
        (barrier, ends), name = old.until, self.name(old.until[0])
        if barrier not in p.waited:
            return f"{p.name} has not waited for {name}"
        phase, step = p.waited[barrier]
        if phase >= ends:
            return f"phase {ends} of {name} is over before all its bytes have come: it was told to expect too few"
        early = [n for n, b in self.siblings(tile) if p.arrivals.get(b, (-1,))[0] >= step and not b.copies]
        if early:
            return f"{p.name} has handed it on before, at {early[0]}"
        return (self.at_once(tile, p).removeprefix(": ")
                or f"{p.name} has waited for phase {phase} of {name}, and this copy ends phase {ends}")

    def not_handed_on(self, tile, p, old):
        """Why partition p may not overwrite a tile that another access is still at."""
        if old.partition is p and old.engine:
            return f"{p.name} has not waited for that {old.what.split()[-1]}"
        barriers = [(name, b) for name, b in self.siblings(tile) if not b.copies and b not in p.arrivals]
        for name, b in barriers:
            if p.waited.get(b, (-1, 0))[0] == b.phase - 1 >= 0:        # the newest phase that is over
                _, last, _ = old.partition.arrivals.get(b, (0, -1, False))
                return (f"{old.partition.name} handed it on, at {name}, before it was done" if last == b.phase - 1 else
                        f"phase {b.phase - 1} of {name} is over without {old.partition.name}: its count is too small, or "
                        f"another has arrived twice")
        names = " or ".join(name for name, _ in barriers)
        return f"{p.name} has not waited until all who read it handed it on" + (f" ({names})" if names else "")

    def one_too_many(self, barrier, nbytes):
        """What an arrival means that a barrier does not lack."""
        name = self.name(barrier)
        index = next(index for memory in self.memory for index, b in memory.barriers.items() if b is barrier)
        others = [n for n, b in self.named_like(name, index) if not b.copies]
        if nbytes and others:
            return (f"{self.active.name} asks for a tile where one is still on its way: it has not waited until that was "
                    f"handed on ({' or '.join(others)})")
        return f"{name} has all {barrier.count} arrivals of phase {barrier.phase} already, and this is one more"

    def here(self):
        """The active partition, and the line that it is at."""
        return f"{self.active.name}, {line_of(kernel_frames(sys._getframe())[-1])}"

    def siblings(self, tile):
        """(name, barrier) of the barriers that belong to a tile: those beside it, at the same place."""
        return self.named_like(self.name(tile), tile.path)

    def named_like(self, name, path):
        barriers = [b for memory in self.memory for index, b in memory.barriers.items() if index == path]
        return [(n, b) for n, b in ((self.name(b), b) for b in barriers)
                if n.rpartition(".")[0] == name.rpartition(".")[0] and n != name]

    def state(self, p):
        """What a partition waits for, of those in a deadlock."""
        if p.greenlet.dead:
            return f"{p.name} has ended"
        if p.waits is None:
            return ""
        barrier, phase = p.waits
        missing = [f"{barrier.missing} of {barrier.count} arrivals"] if barrier.missing else []
        missing += [f"{barrier.bytes} bytes"] if barrier.bytes > 0 else []
        more = f", and has had {-barrier.bytes} bytes that nobody expects" if barrier.bytes < 0 else ""
        return (f"{p.name} waits for phase {phase} of {self.name(barrier)}, which lacks {' and '.join(missing)}{more}: "
                f"{line_of(p.frames()[-1])}")

    def name(self, thing):
        """What the kernel calls a tile or a barrier: the outermost variable that holds its allocation, and its place."""
        for memory in self.memory:
            path = next((path for path, b in memory.barriers.items() if b is thing), getattr(thing, "path", None))
            if path is not None and (thing in memory.barriers.values() or memory is getattr(thing, "memory", None)):
                frames = (frame for p in self.partitions if not p.greenlet.dead for frame in p.frames())
                held = (name for frame in frames for name in holders(frame.f_locals, memory))
                return next(held, "shared memory") + path


def holders(variables, memory, prefix=""):
    """Names under which fields of tuples, and else variables, hold all of an allocation."""
    for name, value in variables.items():
        if hasattr(value, "_fields"):
            yield from holders(value._asdict(), memory, f"{prefix}{name}.")
    yield from (prefix + name for name, value in variables.items()
                if getattr(value, "memory", None) is memory and not value.path and name != "_")


machine = Machine()
