"""ACE-Step: one list of blocks over the frames of a song. Read off `comfy/ldm/ace/model.py` and `ace_step15.py`."""

from .base import Architecture, BlockList

ACE_STEP = Architecture(
    name="ace_step",
    title="ACE-Step",
    networks=("ACEStepTransformer2DModel",),
    stages=(BlockList("transformer_blocks", carried=("hidden_states",)),),
    models=("ACE-Step 1.0",),
)

ACE_STEP_15 = Architecture(
    name="ace_step15",
    title="ACE-Step 1.5",
    networks=("AceStepConditionGenerationModel",),
    stages=(BlockList("decoder.layers", carried=("hidden_states",)),),
    # One sequence of references is gathered from all rows (`unpack_timbre_embeddings`).
    mixes_rows=True,
    models=("ACE-Step 1.5",),
    since="0.12",
)
