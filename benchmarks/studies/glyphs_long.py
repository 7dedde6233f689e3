"""The study `glyphs`, each run twice as long: 16 epochs, as long as the two configs train by themselves.

Rows that set the warm start themselves are left out: their names state its share of 8 epochs.
"""

import dataclasses

from benchmarks.studies import glyphs

STUDY = dataclasses.replace(
    glyphs.STUDY,
    rows={name: row for name, row in glyphs.ROWS.items() if "warm_start_epochs" not in row[2]},
    common={**glyphs.STUDY.common, **glyphs.length(2 * glyphs.EPOCHS)},
)
