"""Offsets that a kernel works out in 32 bits, read off its Triton IR: they wrap where a tensor has 2^31 elements.

A value is of run time if it comes from an argument, a program id, a loop's variable or memory. Every multiplication
above the offset of a `tt.addptr` is looked at, through loops, branches and extensions to 64 bits, which come too late
when they follow it. Sizes of blocks times a program id make row numbers, which are small: such a product of one scalar
and one constant passes, while a whole tensor of row numbers times a constant width does not, unless the tensor is
bounded: what a shift by 8 bits or more leaves over, or a mask, a remainder or a minimum by a constant.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_LOCATION = re.compile(r"\s+loc\((#loc\d*)?(?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
_VALUE = re.compile(r"%[\w$.-]+(?:#\d+)?")
_OP = re.compile(r"^(?:(%[\w$.-]+)(?::(\d+))? = )?\"?([a-z_]+\.[\w.]+)\"?(.*)$")
_ALIAS = re.compile(r"^(#loc\d*) = loc\((.*)\)$")
_CONSTANT_OPS = ("arith.constant", "tt.make_range")
_BOUNDED_BY_A_CONSTANT = ("arith.andi", "arith.remsi", "arith.remui", "arith.minsi", "arith.minui")
_SHIFTS, MIN_SHIFT = ("arith.shrui", "arith.shrsi"), 8
_AS_BOUNDED = (
    *("arith.addi", "arith.subi", "arith.maxsi", "arith.extsi", "arith.extui", "arith.trunci", "arith.select"),
    *("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "ttg.convert_layout"),
)
_ENDS = ("tt.load", "tt.get_program_id", "tt.get_num_programs", "arith.cmpi", "arith.cmpf", *_CONSTANT_OPS)


@dataclass
class _Value:
    op: str
    line: str = ""
    location: str = ""
    operands: list[int] = field(default_factory=list)


@dataclass
class _Region:
    """What is open: the names it defines, and who takes the values it yields."""

    op: str
    names: dict[str, int] = field(default_factory=dict)
    carried: list[int] = field(default_factory=list)  # loop arguments
    results: list[int] = field(default_factory=list)


def narrow_offsets(ttir: str) -> list[str]:
    """The 32-bit multiplications by values of run time that reach an offset, a line each; none is wanted."""
    module = _Module()
    aliases = {}
    for line in ttir.splitlines():
        alias = _ALIAS.match(line)
        if alias:
            aliases[alias[1]] = alias[2]
        else:
            module.read(line)
    found = (value for value in module.above_offsets() if module.is_narrow_product(value))
    return [f"{_place(value.location, aliases)}{value.line}" for value in found]


class _Module:
    """The values of a module and what each is made of."""

    def __init__(self) -> None:
        self.values: list[_Value] = []
        self.offsets: list[int] = []
        self.open: list[_Region] = [_Region("module")]

    def read(self, line: str) -> None:
        """Take one line of text in."""
        location = _LOCATION.search(line)
        text = _LOCATION.sub("", line).strip()
        if text.startswith("}"):
            self._close(text)
            return
        if text.startswith("^"):
            self._block(text)
            return
        matched = _OP.match(text)
        if matched is None:
            return
        name, count, op, rest = matched.groups()
        self._op(text, location[1] or "" if location else "", name, int(count or 1), op, rest)

    def above_offsets(self) -> Iterator[_Value]:
        """Every value that an offset is made of, once."""
        waiting, seen = list(self.offsets), set(self.offsets)
        while waiting:
            value = self.values[waiting.pop()]
            yield value
            if value.op not in _ENDS:
                new = [operand for operand in value.operands if operand not in seen]
                seen.update(new)
                waiting += new

    def is_narrow_product(self, value: _Value) -> bool:
        """Whether it multiplies numbers of run time in 32 bits."""
        if value.op != "arith.muli" or not re.search(r": (?:i32|tensor<[\dx]*i32>)$", value.line):
            return False
        of_run_time = [self._is_of_run_time(operand) for operand in value.operands]
        if all(of_run_time):
            return True
        return "tensor<" in value.line and not all(self._is_bounded(operand) for operand in value.operands)

    def _is_bounded(self, number: int) -> bool:
        """Whether it is small whatever the arguments are."""
        value = self.values[number]
        if not self._is_of_run_time(number):
            return True
        if value.op in _SHIFTS:
            shift = self.values[value.operands[1]]
            by = re.search(r"constant (?:dense<)?(\d+)", shift.line)
            return by is not None and int(by[1]) >= MIN_SHIFT
        if value.op in _BOUNDED_BY_A_CONSTANT:
            return not all(self._is_of_run_time(operand) for operand in value.operands)
        return value.op in _AS_BOUNDED and all(self._is_bounded(operand) for operand in value.operands)

    def _is_of_run_time(self, number: int) -> bool:
        waiting, seen = [number], {number}
        while waiting:
            value = self.values[waiting.pop()]
            if value.op in _CONSTANT_OPS:
                continue
            if value.op in _ENDS or not value.operands:
                return True
            new = [operand for operand in value.operands if operand not in seen]
            seen.update(new)
            waiting += new
        return False

    def _op(self, text: str, location: str, name: str | None, count: int, op: str, rest: str) -> None:
        if op == "tt.func":
            self._enter(_Region(op), {argument: [] for argument in _VALUE.findall(rest)})
            return
        used = [self._find(word) for word in _VALUE.findall(rest.partition(" iter_args(")[0])]
        operands = [number for number in used if number is not None]
        if op in ("scf.yield", "scf.condition"):
            self._yield(op, operands)
            return
        loop = op in ("scf.for", "scf.while")
        if op == "arith.select":
            operands = operands[1:]
        results = [
            self._add(_Value(op, text, location, [] if loop or op == "scf.if" else operands)) for _ in range(count)
        ]
        if op == "tt.addptr":
            self.offsets.append(operands[1])
        if text.endswith("{"):
            self._open(op, rest, results)
        if name is not None:
            names = [name] if count == 1 else [f"{name}#{place}" for place in range(count)]
            scope = self.open[-2] if text.endswith("{") else self.open[-1]
            scope.names |= dict(zip(names, results, strict=True))

    def _open(self, op: str, rest: str, results: list[int]) -> None:
        region = _Region(op, results=results)
        if op == "scf.for":
            variable = _VALUE.findall(rest)[0]
            begins = {variable: [], **_begins(rest.partition(" iter_args(")[2])}
        elif op == "scf.while":
            begins = _begins(rest)
        else:
            begins = {}
        named = {
            argument: [number for word in words if (number := self._find(word)) is not None]
            for argument, words in begins.items()
        }
        self._enter(region, named)
        region.carried = list(region.names.values())[1 if op == "scf.for" else 0 :]
        if op == "scf.for":
            for result, carried in zip(results, region.carried, strict=False):
                self.values[result].operands.append(carried)

    def _enter(self, region: _Region, arguments: dict[str, list[int]]) -> None:
        for argument, operands in arguments.items():
            region.names[argument] = self._add(_Value("argument", operands=operands))
        self.open.append(region)

    def _block(self, text: str) -> None:
        """The arguments of `^bb0`: in the second half of a while loop, what its condition passes on."""
        region = self.open[-1]
        for place, argument in enumerate(_VALUE.findall(text)):
            passed = region.results[place : place + 1] if region.op == "scf.while" else []
            region.names[argument] = self._add(_Value("argument", operands=list(passed)))

    def _yield(self, op: str, operands: list[int]) -> None:
        region = self.open[-1]
        if op == "scf.condition":
            takers, operands = region.results, operands[1:]
        else:
            takers = region.carried if region.op in ("scf.for", "scf.while") else region.results
        for taker, operand in zip(takers, operands, strict=False):
            self.values[taker].operands.append(operand)

    def _close(self, text: str) -> None:
        if text.endswith("{"):
            kept = dict(zip(self.open[-1].names, self.open[-1].carried, strict=False)) if "do" in text else {}
            self.open[-1].names = kept
        elif len(self.open) > 1:
            self.open.pop()

    def _find(self, word: str) -> int | None:
        return next((region.names[word] for region in reversed(self.open) if word in region.names), None)

    def _add(self, value: _Value) -> int:
        self.values.append(value)
        return len(self.values) - 1


def _begins(text: str) -> dict[str, list[str]]:
    """`%a = %x, %b = %y) ...`: what each argument of a loop begins with."""
    return {argument: [begin] for argument, begin in re.findall(r"(%[\w$.-]+) = (%[\w$.-]+(?:#\d+)?)", text)}


def _place(location: str, aliases: dict[str, str]) -> str:
    """`line 12: `, found through the aliases of places."""
    text = aliases.get(location, "")
    while inner := re.search(r"#loc\d*", text):
        text = aliases.get(inner[0], "")
    line = re.search(r":(\d+):\d+", text)
    return f"line {line[1]}: " if line else ""
