"""How a router learns which expert to trust, and when to speak up itself.

Stage 1 (SFT, Eq. 2), one idea a file, in the order in which they are used:

* `settings`    what a team file may say
* `run_folder`  what may be written where, and what continues what
* `precheck`    do these models belong together? asked before any weights are loaded
* `data`        examples to token ids
* `fingerprint` what scores belong to
* `scores`      what each expert says of the data: one expert in memory at a time, numbers on disk
* `collator`    scored examples to padded batches
* `sft`         the trainer: the router alone, the experts are numbers by now
* `interrupt`   Ctrl-C keeps the work
* `run`         all of it in one resumable command

Stage 2 (CDPO, Eq. 3) starts from the router of stage 1 and gets its files beside these: preference pairs, whose
answers are scored by the same `scores`, and a trainer of its own.
"""
