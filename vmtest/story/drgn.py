"""Prints what drgn finds of the crash: drgn.py VMLINUX VMCORE."""

import sys

import drgn
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.printk import get_printk_records
from drgn.helpers.linux.sched import cpu_curr

vmlinux, vmcore = sys.argv[1:]
prog = drgn.Program()
prog.set_core_dump(vmcore)
prog.load_debug_info([vmlinux])
print("release", prog["init_uts_ns"].name.release.string_().decode())
for record in get_printk_records(prog):
    text = record.text.decode(errors="replace")
    if "Kernel panic" in text:
        print("log", text)
crashed = prog.crashed_thread()
print("crashed", crashed.object.comm.string_().decode())
print(crashed.stack_trace())
for cpu in for_each_possible_cpu(prog):
    frame = prog.stack_trace(cpu_curr(prog, cpu))[0]
    print("cpu", cpu, "registers", frame)
