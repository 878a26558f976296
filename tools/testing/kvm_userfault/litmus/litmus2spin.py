#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""
Translate a litmus test, in the notation of tools/memory-model, to Promela, for Spin to check.

Debian 12 has no herd7, and Spin knows no weak memory.  Hence the model that is written here
spells it out.  The stores to a location stay, in the order in which they were made, and

  seen[l]   each thread has, for each location, the newest store that it cannot do without: it
            may load that one or any newer one.
  told[s]   each store carries for each location what who acquires it has seen then: all that
            the thread had seen, for a release; what it had seen at its last smp_mb() and had
            stored before its last smp_wmb(), for others.
  due[l]    what a thread would have seen had its loads been acquires; smp_rmb() and smp_mb()
            make it so.

xchg() loads the newest store, its variants without suffix are full barriers as well; locks hand
over what has been seen, and order stores, and loads, before the unlock with those after the next
lock; a grace period of SRCU waits for the readers that there are, whose loads are then done, and
those who come later see what it has seen.

This lets loads pass loads and stores, and stores pass stores, and lets two threads see two
stores in different orders: the reorderings that matter here.  It does not let a store pass an
earlier load of its thread, nor an earlier store to the same location of another thread.  So
"Sometimes" is to be trusted, and "Never" is for code where the stores that count come after an
acquire, a lock, or a full barrier.

Of the 35 tests of tools/memory-model/litmus-tests this translates 30, and agrees with 28 of
them: LB+poonceonces and S+poonceonces are Sometimes for the two reasons above.  `make check`
runs those 28, too.
"""
import re
import sys


class Test:
    def __init__(self, text):
        self.name = re.match(r"C (\S+)", text).group(1)
        text = re.sub(r"\(\*\s.*?\*\)", "", text, flags=re.S)
        text = re.sub(r"//.*", "", text)
        text = re.sub(r"(if \(.*\))\s*([^{};]*;)", r"\1 { \2 }", text)
        init, rest = re.search(r"\{(.*?)\}(.*)", text, re.S).groups()
        code, self.exists = re.search(r"(.*)\bexists\b(.*)", rest, re.S).groups()
        self.init = dict(re.findall(r"(\w+)=(\d+)", init))
        self.locations, self.locks = [], []
        self.threads = []
        for params, body in re.findall(r"P\d+\((.*?)\)\s*^\{(.*?)^\}", code, re.S | re.M):
            for kind, name in re.findall(r"([\w ]+)\s\*(\w+)", params):
                known = {"int": self.locations, "spinlock_t": self.locks}.get(kind.strip(), [])
                if name not in known:
                    known.append(name)
            self.threads.append(re.findall(r"[^;{}]+;|[^;{}]*\{|\}", body))
        stores = re.findall(r"WRITE_ONCE\(\*(\w+)|(?:smp_store_release|xchg\w*)\((\w+)", code)
        self.depth = 1 + max(sum(x in s for s in stores) for x in self.locations)
        self.out = []

    def emit(self, *lines):
        self.out += lines

    def each(self, text):
        """One copy of the text per location, $ being its number, in one line."""
        return " ".join(text.replace("$", str(n)) for n in range(len(self.locations)))

    def join(self, to, what):
        self.emit(self.each(f"if :: {to} < {what} -> {to} = {what} :: else fi;"))

    def told(self, x, nth):
        return f"told[({x} * DEPTH + {nth}) * LOCATIONS + $]"

    def acquire(self, what):
        self.join("seen[$]", what)

    def load(self, reg, var, acquire=False, newest=False):
        x = self.locations.index(var)
        if newest:
            self.emit(f"t = last[{x}];")
        else:
            self.emit(f"select_store(t, seen[{x}], last[{x}]);")
        self.emit(f"seen[{x}] = t;", f"{reg} = val[{x} * DEPTH + t];")
        self.join("due[$]", self.told(x, "t"))
        if acquire:
            self.acquire(self.told(x, "t"))

    def store(self, var, expr, release=False):
        x = self.locations.index(var)
        self.emit(f"last[{x}]++;", f"t = last[{x}];", f"val[{x} * DEPTH + t] = {expr};",
                  f"seen[{x}] = t; own[{x}] = t;")
        self.join(self.told(x, "t"), "seen[$]" if release else "fenced[$]")

    def full_barrier(self):
        self.join("seen[$]", "due[$]")
        self.join("seen[$]", "everyone[$]")
        self.emit(self.each("everyone[$] = seen[$]; fenced[$] = seen[$];"))

    def statement(self, text, me):
        text = " ".join(text.split())
        atomic = lambda f, *args: (self.emit("atomic {"), f(*args), self.emit("}"))

        def xchg(reg, kind, var, expr):
            if not kind:
                self.full_barrier()
            self.load(reg, var, acquire=kind == "_acquire", newest=True)
            # What the store before told, who reads this one is told, too.
            x = self.locations.index(var)
            self.store(var, expr, release=kind in ("", "_release"))
            self.join(self.told(x, "t"), self.told(x, "(t - 1)"))
            if not kind:
                self.full_barrier()

        def lock(name):
            self.emit(f"!lock_{name}; lock_{name} = true;")
            self.acquire(f"seen_{name}[$]")
            self.join("fenced[$]", f"seen_{name}[$]")
            self.join("fenced[$]", "own_unlock[$]")
            self.join("seen[$]", "due_unlock[$]")

        def unlock(name):
            self.emit(self.each("own_unlock[$] = own[$]; due_unlock[$] = due[$];"))
            self.emit(self.each(f"seen_{name}[$] = seen[$];"), f"lock_{name} = false;")

        def srcu_read_lock(reg):
            self.emit(f"reading[{me}] = true;", f"{reg} = 0;")
            self.acquire("seen_gp[$]")

        def srcu_read_unlock():
            self.join("seen_readers[$]", "seen[$]")
            self.join("seen_readers[$]", "due[$]")
            self.emit(f"reading[{me}] = false;")

        def synchronize_srcu():
            self.emit("atomic {")
            self.full_barrier()
            self.join("seen_gp[$]", "seen[$]")
            for n in range(len(self.threads)):
                self.emit(f"wait[{n}] = reading[{n}];")
            self.emit("}")
            for n in range(len(self.threads)):
                self.emit(f"!wait[{n}] || !reading[{n}];")
            self.emit("atomic {")
            self.acquire("seen_readers[$]")
            self.full_barrier()
            self.emit("}")

        rules = (
            (r"int (\w+);", lambda reg: self.emit(f"/* {reg} */")),
            (r"if \((.*)\) \{", lambda cond: self.emit("if", f":: ({cond}) ->", "skip;")),
            (r"\}", lambda: self.emit(":: else -> skip;", "fi;")),
            (r"(\w+) = READ_ONCE\(\*(\w+)\);", lambda r, x: atomic(self.load, r, x)),
            (r"(\w+) = smp_load_acquire\((\w+)\);", lambda r, x: atomic(self.load, r, x, True)),
            (r"WRITE_ONCE\(\*(\w+), (\w+)\);", lambda x, e: atomic(self.store, x, e)),
            (r"smp_store_release\((\w+), (\w+)\);", lambda x, e: atomic(self.store, x, e, True)),
            (r"(\w+) = xchg(|_relaxed|_acquire|_release)\((\w+), (\w+)\);",
             lambda *args: atomic(xchg, *args)),
            (r"smp_rmb\(\);", lambda: atomic(self.join, "seen[$]", "due[$]")),
            (r"smp_wmb\(\);", lambda: atomic(self.join, "fenced[$]", "own[$]")),
            (r"smp_mb\(\);", lambda: atomic(self.full_barrier)),
            (r"spin_lock\((\w+)\);", lambda name: atomic(lock, name)),
            (r"spin_unlock\((\w+)\);", lambda name: atomic(unlock, name)),
            (r"(\w+) = srcu_read_lock\(\w+\);", lambda reg: atomic(srcu_read_lock, reg)),
            (r"srcu_read_unlock\(.*\);", lambda: atomic(srcu_read_unlock)),
            (r"synchronize_srcu\(\w+\);", synchronize_srcu),
            (r"(\w+) = (\w+);", lambda reg, expr: self.emit(f"{reg} = {expr};")),
        )
        for pattern, action in rules:
            match = re.fullmatch(pattern, text)
            if match:
                self.emit(f"/* {text} */")
                action(*(re.sub(r"\b(r\d+)\b", rf"P{me}_\1", group) for group in match.groups()))
                return
        sys.exit(f"{self.name}: cannot translate: {text}")

    def promela(self):
        n = len(self.locations)
        views = [f"byte seen_{name}[{n}];\nbool lock_{name};" for name in self.locks]
        self.emit(f"#define DEPTH {self.depth}", f"#define LOCATIONS {n}",
                  "inline select_store(t, from, to) {",
                  "t = from; do :: t < to -> t++ :: break od", "}",
                  f"byte last[{n}], val[{n * self.depth}], told[{n * n * self.depth}];",
                  f"byte everyone[{n}], seen_gp[{n}], seen_readers[{n}];",
                  f"bool reading[{len(self.threads)}], wait[{len(self.threads)}];",
                  "byte running;", *views)
        for me, body in enumerate(self.threads):
            regs = sorted(set(re.findall(r"\br\d+\b", " ".join(body))))
            self.emit(*(f"byte P{me}_{reg};" for reg in regs))
        final = re.sub(r"(\d+):(\w+)=(\d+)", r"P\1_\2 == \3", self.exists)
        final = re.sub(r"(?<!\w)([a-z]\w*)=(\d+)", lambda m: "val[{0} * DEPTH + last[{0}]] == {1}"
                       .format(self.locations.index(m[1]), m[2]), final)
        final = final.replace("/\\", "&&").replace("\\/", "||").replace("~", "!").strip()
        for me, body in enumerate(self.threads):
            self.emit(f"proctype P{me}() {{",
                      f"byte t, seen[{n}], due[{n}], own[{n}], fenced[{n}];",
                      f"byte own_unlock[{n}], due_unlock[{n}];")
            for text in body:
                if text.strip():
                    self.statement(text, me)
            self.emit("running--;", "}")
        self.emit("init {", "atomic {")
        for var, value in self.init.items():
            self.emit(f"val[{self.locations.index(var)} * DEPTH] = {value};")
        self.emit(f"running = {len(self.threads)};",
                  *(f"run P{me}();" for me in range(len(self.threads))), "}",
                  f"running == 0 -> assert(!({final}));", "}")
        return "\n".join(self.out)


print(Test(sys.stdin.read()).promela())
