"""The commands of diffdistill, each with its flags.

The usage, the help, the refusals and the call of a command's function follow
from this table. A new command is one more entry. A new flag is one more `Flag`
and one more parameter of the function.

This file imports no slow library, because the help imports this file. It is one
table, which is clearer in one file of more than 320 lines than in two.
"""

import dataclasses

from diffdistill.cli.command import (
  CONFIG,
  FOLDER,
  HOSTS,
  NUM_STEPS,
  REDO,
  ROUND,
  WORKDIR,
  Command,
  Flag,
)
from diffdistill.ranges import (
  GUIDANCE,
  IN_A_ROW,
  LABEL,
  SAMPLES,
  SEED,
  STEPS,
  Range,
)

COMMANDS = {
  "train": Command(
    about="Train the rounds of a recipe that are not finished yet. Checkpoints,"
    " metrics and sample sheets go into the workdir. After a stop, the same"
    " command goes on from the newest checkpoint.",
    function="diffdistill.tools.train:train",
    flags=(CONFIG, WORKDIR, REDO, *HOSTS),
    example="--config=digits:progressive --workdir=runs/digits"
    " --config.stages.halve.num_updates=200",
    again="the same command goes on from the newest checkpoint",
  ),
  "sample": Command(
    about="Draw images from the teacher or a student of a run. They are written"
    " as one sheet (.png), or as arrays (.npz): bytes in arr_0, and the labels"
    " of the images in arr_1 if the model has classes.",
    function="diffdistill.tools.sample:sample",
    flags=(
      WORKDIR,
      ROUND,
      Flag(
        "num_images",
        "int",
        "The number of images. With --interpolate, the number of rows.",
        unset="64, or 4 with --show_steps",
        range=SAMPLES,
      ),
      NUM_STEPS,
      Flag("seed", "int", "The seed of the noise.", default=0, range=SEED),
      Flag(
        "label",
        "int",
        "The class of all images. The first class is 0.",
        unset="classes are as frequent as in the data",
        range=LABEL,
      ),
      Flag(
        "guidance",
        "float",
        "The weight of classifier-free guidance. 0 means none.",
        unset="the config's weight, but 0 for a student that is told none",
        range=GUIDANCE,
      ),
      Flag(
        "interpolate",
        "int",
        "Draw rows of so many images, each row from one noise to another.",
        unset="each image has its own noise",
        range=IN_A_ROW,
      ),
      Flag(
        "show_steps",
        "switch",
        "Draw each step of a student beside its teacher's, from one noise.",
        default=False,
      ),
      Flag(
        "plain",
        "switch",
        "Draw the images of a .png alone, without a title and classes.",
        default=False,
      ),
      Flag(
        "out",
        "place",
        "The file to write, a .png or an .npz.",
        default="samples.png",
      ),
      *HOSTS,
    ),
    example="--workdir=runs/digits --round=halve/004 --num_images=16"
    " --out=grid.png",
  ),
  "evaluate": Command(
    about="Measure how good the images of the teacher and of each student are."
    " Prints a table, and writes evaluation.json, evaluation.png and"
    " samples/compared.png into the workdir. Each row is kept when it is done."
    " After a stop, the same command goes on with the next row.",
    function="diffdistill.tools.evaluate:evaluate",
    flags=(
      WORKDIR,
      Flag(
        "num_images",
        "int",
        "The number of images of each model that are judged.",
        unset="the config's number",
        range=SAMPLES,
      ),
      Flag(
        "num_steps",
        "ints",
        "The teacher is judged once for each of these numbers of steps, and a"
        " student if it was made for one of them.",
        unset="the config's numbers",
        range=STEPS,
      ),
      Flag(
        "inception",
        "place",
        "The weights of FID's network, pt_inception-2015-12-05-6726825d.pth.",
        unset="the config's file, or the file in DIFFDISTILL_INCEPTION",
        variable="DIFFDISTILL_INCEPTION",
      ),
      Flag(
        "reference",
        "place",
        "An .npz of what FID compares with: mu and sigma, or images.",
        unset="the config's file, or the data of the run",
      ),
      Flag(
        "follow",
        "switch",
        "Judge each model as soon as a training beside this command has"
        " finished it, and new checkpoints of students, until the run is"
        " finished.",
        default=False,
      ),
      *HOSTS,
    ),
    example="--workdir=runs/digits --num_steps=1,2,4,8 --num_images=10000",
    again="the rows that are done are kept, and the same command goes on from"
    " there",
  ),
  "run": Command(
    about="Train, evaluate, benchmark and report a recipe within a time limit."
    " Before the time is over, what was trained is saved and the status is 75."
    " Repeat the same command until the status is 0.",
    function="diffdistill.tools.time_limit:run",
    flags=(
      dataclasses.replace(CONFIG, kind="config words"),
      WORKDIR,
      Flag(
        "minutes",
        "float",
        "The time that this command may take. 0 means no limit.",
        default=0.0,
        range=Range(0, 10**6),
      ),
      Flag(
        "reserve",
        "int",
        "So many seconds of --minutes are kept for saving.",
        default=60,
        range=Range(1, 10**6),
      ),
      Flag(
        "results",
        "place",
        "The folder for the report, its numbers and its pictures.",
        default="results",
      ),
      Flag("cpu", "switch", "Run on a CPU too.", default=False),
    ),
    example="--config=cifar10:half_hour --workdir=runs/half_hour --minutes=9.5",
    computes=False,
    again="the same command goes on",
  ),
  "carry": Command(
    about="Make a smaller copy of a run, with all that the rest of it needs."
    " Another machine can go on with the copy.",
    function="diffdistill.tools.carry:carry",
    flags=(WORKDIR, FOLDER),
    example="--workdir=runs/digits --out=carried",
  ),
  "report": Command(
    about="Write one page about one run, or several side by side. It holds"
    " all curves, tables and images, and needs no other file.",
    function="diffdistill.tools.report:report",
    flags=(
      dataclasses.replace(
        WORKDIR,
        kind="places",
        help="The folder of a run. Write A,B or repeat the flag for several.",
        parameter="workdirs",
      ),
      Flag(
        "out",
        "place",
        "The file to write: an .html page, a .json of its numbers, or a .csv"
        " of the rows of the evaluations.",
        default="report.html",
      ),
    ),
    example="--workdir=runs/digits,runs/other --out=both.html",
  ),
  "init": Command(
    about="Write a config for your own images, to be changed. It does the same"
    " as the recipes folder:progressive and folder:all.",
    function="diffdistill.tools.init:init",
    flags=(
      Flag("out", "place", "The new file to write, a .py.", default="my.py"),
    ),
    example="--out=my.py",
    computes=False,
  ),
  "pack": Command(
    about="Write the images of a data set into one file that is read quickly."
    " They are resized as the config says.",
    function="diffdistill.tools.pack:pack",
    flags=(
      CONFIG,
      Flag(
        "out",
        "place",
        "The .npz to write. If the data has a train and a test split, write"
        " {split} for them in its name.",
        required=True,
      ),
    ),
    example="--config=cifar10:progressive"
    " --config.data.source.path=pictures --out=data/cifar10_{split}.npz",
  ),
  "import": Command(
    about="Turn the model of another framework into a folder for recipes. A"
    " recipe uses it with stages.teacher.source=imported:FOLDER.",
    function="diffdistill.tools.import_model:import_model",
    flags=(
      Flag(
        "from",
        "place",
        "The file or the folder of the model.",
        required=True,
        parameter="source",
      ),
      Flag(
        "settings",
        "place",
        "A .json file of what the model's own files do not say.",
        unset="none",
      ),
      FOLDER,
    ),
    example="--from=ddpm-cifar10-32 --out=teachers/ddpm",
  ),
  "export": Command(
    about="Write the teacher or a student of a run in another format. A model"
    " card comes with it. stablehlo holds the whole sampler in one file.",
    function="diffdistill.tools.export:export",
    flags=(
      WORKDIR,
      ROUND,
      NUM_STEPS,
      Flag(
        "format",
        "text",
        "The format to write.",
        default="safetensors",
        choices=("diffusers", "safetensors", "stablehlo"),
        parameter="kind",
      ),
      FOLDER,
    ),
    example="--workdir=runs/digits --round=halve/004 --format=stablehlo"
    " --out=students/four",
  ),
  "plan": Command(
    about="Compute what a recipe costs on a pod that need not be here. Prints"
    " the memory of each chip, the arithmetic and the communication of each"
    " update, and what does not fit.",
    function="diffdistill.tools.plan:plan",
    flags=(
      CONFIG,
      Flag(
        "topology",
        "text",
        "The chips: v5e:8x8, v5p:4x4x4, v5e:16x16*2 (two slices) or cpu:8.",
        required=True,
      ),
      Flag(
        "json",
        "switch",
        "Print JSON in place of a table.",
        default=False,
        parameter="as_json",
      ),
    ),
    example="--config=imagenet64:progressive --topology=v5e:8x8",
  ),
  "benchmark": Command(
    about="Time how fast a recipe trains and samples on this machine. Prints"
    " JSON.",
    function="diffdistill.tools.benchmark:benchmark",
    flags=(
      CONFIG,
      Flag("stage", "text", "The stage to time.", unset="all stages"),
      Flag(
        "num_updates",
        "int",
        "The number of updates in each repetition of a measurement.",
        default=50,
        range=Range(1, 10**6),
      ),
      Flag(
        "num_steps",
        "ints",
        "Sampling is timed once for each of these numbers of steps.",
        default=(1, 2, 4, 8),
        range=STEPS,
      ),
      Flag(
        "profile",
        "place",
        "The folder for traces of JAX's profiler.",
        unset="no traces",
      ),
    ),
    example="--config=digits:progressive --stage=teacher",
  ),
  "doctor": Command(
    about="Say what this machine has and what it lacks. It looks for devices,"
    " memory, disk space, versions and optional packages.",
    function="diffdistill.tools.doctor:doctor",
    flags=(
      Flag(
        "workdir",
        "place",
        "The folder of a run, which must be writable. It need not exist yet.",
        unset="the current folder",
      ),
    ),
    example="--workdir=runs/digits",
    computes=False,
  ),
  "list": Command(
    about="List what a recipe can be made of, and all recipes. It names the"
    " objectives, networks, samplers, data sources and configs.",
    function="diffdistill.tools.list_all:list_all",
    flags=(
      Flag(
        "bibtex",
        "switch",
        "Print the papers of the objectives instead, in BibTeX.",
        default=False,
      ),
    ),
    example="--bibtex",
    computes=False,
  ),
  "completion": Command(
    about="Print a script that lets a shell complete commands and flags. It"
    " completes the names of recipes too. Its first lines say where to put it.",
    function="diffdistill.cli.completion:completion",
    flags=(
      Flag(
        "shell",
        "text",
        "The shell that you use.",
        required=True,
        choices=("bash", "fish", "zsh"),
      ),
    ),
    example="--shell=bash",
    computes=False,
  ),
}
