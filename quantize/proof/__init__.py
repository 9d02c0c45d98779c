"""Proof on an emulated CPU with VNNI: the same wheel, the same model, every output compared.

proving: what to run and why ─▶ guest: boot and answer ─▶ comparing: against exact judging here
initramfs: the guest's files, inside: its program, debian: what is needed from Debian
"""
