"""What a CPU is, from the texts in which Linux and macOS describe it."""

from pathlib import Path

import pytest

from nopad.model.cpus import Cpu, cpu_at_hand, parse_cpuinfo, parse_sysctl

X86 = "processor\t: {n}\nvendor_id\t: {vendor}\nmodel name\t: {model}\nflags\t\t: fpu sse2 {flags}\n\n"
ARM = "processor\t: {n}\nFeatures\t: fp {features}\nCPU implementer\t: {maker}\nCPU part\t: {part}\n\n"


def x86(vendor: str, model: str, flags: str) -> Cpu:
    return parse_cpuinfo("".join(X86.format(n=n, vendor=vendor, model=model, flags=flags) for n in range(2)))


def test_an_x86_cpu() -> None:
    cpu = x86("AuthenticAMD", "AMD EPYC 9454", "avx512_bf16 avx2 avx512f avx512_vnni")
    assert cpu == Cpu("AMD", "AMD EPYC 9454", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"))
    assert cpu.bf16


@pytest.mark.parametrize(
    ("flags", "bf16"), [("avx2 avx_vnni", False), ("avx2 avx512f avx512_vnni", False), ("avx2 amx_tile amx_bf16", True)]
)
def test_which_intel_cpus_have_bf16(flags: str, bf16: bool) -> None:
    cpu = x86("GenuineIntel", "Intel(R) Xeon(R) Processor", flags)
    assert (cpu.vendor, cpu.bf16) == ("Intel", bf16)


def test_an_arm_cpu_is_named_by_its_numbers() -> None:
    graviton = parse_cpuinfo(ARM.format(n=0, features="asimd asimddp sve i8mm bf16", maker="0x41", part="0xd40"))
    assert graviton == Cpu("ARM", "ARM Neoverse-V1", ("asimd", "asimddp", "i8mm", "bf16", "sve"))
    assert graviton.bf16
    stranger = parse_cpuinfo(ARM.format(n=0, features="asimd", maker="0x99", part="0x123"))
    assert stranger == Cpu("0x99", "0x99 0x123", ("asimd",))
    assert not stranger.bf16


def test_of_unequal_cores_what_all_have() -> None:
    big = ARM.format(n=0, features="asimd bf16", maker="0x41", part="0xd40")
    small = ARM.format(n=1, features="asimd", maker="0x41", part="0xd08")
    assert parse_cpuinfo(big + small).features == ("asimd",)


def test_macos() -> None:
    m1 = {"machdep.cpu.brand_string": "Apple M1", "hw.optional.arm.AdvSIMD": "1", "hw.optional.arm.FEAT_BF16": "0"}
    assert parse_sysctl(m1) == Cpu("Apple", "Apple M1", ("asimd",))
    assert parse_sysctl({**m1, "hw.optional.arm.FEAT_BF16": "1"}).bf16
    intel = {"machdep.cpu.brand_string": "Intel(R) Core(TM) i7", "machdep.cpu.leaf7_features": "BMI1 AVX2 SMEP"}
    assert parse_sysctl(intel) == Cpu("Intel", "Intel(R) Core(TM) i7", ("avx2",))


def test_a_text_that_says_nothing() -> None:
    assert parse_cpuinfo("") == parse_sysctl({}) == Cpu("unknown", "unknown")
    assert not Cpu("unknown", "unknown").bf16


def test_keys_name_the_cpu_and_tell_instruction_sets_apart() -> None:
    one, other = Cpu("AMD", "AMD EPYC", ("avx2",)), Cpu("AMD", "AMD EPYC", ("avx2", "avx512_bf16"))
    assert one.key.startswith("amd-epyc-")
    assert one.key != other.key
    assert one.key == Cpu("AMD", "AMD EPYC", ("avx2",)).key


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_this_machine_is_known() -> None:
    assert cpu_at_hand() == parse_cpuinfo(Path("/proc/cpuinfo").read_text())
    assert cpu_at_hand().model != "unknown"
