"""The words of the steps "understand" and "judge" of the Compress tab in English."""

COMPRESS_JUDGE_EN: dict[str, str] = {
    # the knock-out lab
    "lab_intro": (
        "Switch a block, one of its halves or single heads off and see the same seed with and without. Nothing is cut: "
        "the model is whole again before the next picture is drawn, and these pictures are not kept in History."
    ),
    "lab_draw": "Draw both",
    "lab_live": "Draw after every click",
    "lab_seed_new": "New seed",
    "lab_out": "Switched off",
    "lab_nothing_out": "Nothing is switched off. Click a part on the board.",
    "lab_all_on": "Switch everything on again",
    "lab_back_on": "Switch {unit} on again",
    "lab_more": "Size, steps, guidance",
    "lab_idle": "Switch a part off to see what it does.",
    "lab_idle_hint": "Click a part on the board: the same seed is then drawn with everything and without that part.",
    "lab_show_whole": "With everything",
    "lab_show_both": "Both",
    "lab_show_without": "Without",
    "lab_slider": "The same seed with everything (left) and without what is switched off (right)",
    "lab_mark": "Without {units}",
    "lab_mark_many": "Without {units} and {count} more parts",
    "lab_seed_line": "Seed {seed}. Left: with everything. Right: without what is switched off.",
    "lab_distance": "Distance between the two: PSNR {psnr} dB, SSIM {ssim} (1 is equal).",
    "lab_same": "Not a single pixel differs: at this seed the model does not miss it.",
    "lab_whole_step": "With everything: step {done} of {total}",
    "lab_without_step": "Without: step {done} of {total}",
    "lab_failed": "This could not be drawn",
    "lab_no_board": "The parts of this model cannot be switched",
    "lab_no_board_hint": (
        "{why} Choose above the folder of the model with its plain weights (bfloat16, float16 or float32)."
    ),
    # the board and the map
    "heat_title": "The board: every part of the transformer",
    "heat_label": "Parts of the transformer",
    "heat_blocks": "Block",
    "heat_by_step": "{part}, step by step",
    "heat_value": "lost without it: {value}",
    "heat_at_step": "step {step}",
    "heat_legend": "Lost without it",
    "heat_legend_out": "switched off",
    "heat_none": "Not measured yet: the board has no colours. Measure the map to see which parts the model needs.",
    "heat_about": (
        "Colour and number say how far the finished picture moves when it is drawn without this part alone, "
        "as a share of the picture itself: 0 is not missed at all. "
        "Measured on {prompts} pictures of {steps} steps, {width}×{height} px, before the VAE decodes them."
    ),
    "heat_step_about": (
        "How far the model's answer at each step of the drawing moves, first to last. A part can matter little in one "
        "step and much in the finished picture. A click switches the part off at all steps."
    ),
    "heat_measuring": "Measuring …",
    "heat_measure": "Measure the map",
    "heat_prompts": "Prompts to measure on",
    "heat_view": "Colours show",
    "heat_view_parts": "All parts",
    "heat_view_step": "{part} by step",
    "heat_failed": "The map was not measured",
    "heat_stopped": "The measuring was stopped. Nothing was kept; start it again when you like.",
    "stack_layers": "Block {index}",
    "stack_noise_refiner": "Noise refiner {index}",
    "stack_context_refiner": "Context refiner {index}",
    "part_block": "Whole block",
    "part_attention": "Attention",
    "part_feed_forward": "Feed-forward",
    "part_head": "Head {head}",
    "part_heads": "Heads",
    "heads_count": "{heads} heads",
    "heads_out": "{count}/{heads} off",
    "heads_show": "{place}: show its heads",
    "heads_hide": "{place}: hide its heads",
    "heads_of": "{place}: its heads",
    "unit_named": "{place} · {part}",
    "unit_switch": "{unit}: switch off or on",
    "unit_switch_value": "{unit}: switch off or on ({value})",
    # judging
    "judge_against": "Compare with",
    "judge_against_parent": "The uncut model it comes from",
    "judge_count": "Prompts",
    "judge_seed": "First seed",
    "judge_quantised": "Also compare with the parent quantised to the same bytes",
    "judge_own_prompts": "Prompts of your own, one a line",
    "judge_own_placeholder": "Empty: questions with known answers for the embedded model, bundled prompts for others",
    "judge_more": "Prompts and measuring models",
    "judge_clip": "CLIP model",
    "judge_clip_info": "Folder of an open_clip checkpoint, or hf-hub:organisation/name. Empty: ours, where it fits.",
    "judge_lpips": "LPIPS weights",
    "judge_lpips_info": "Folder. Empty: this distance is left out, and the card says so.",
    "judge_image_reward": "ImageReward",
    "judge_image_reward_info": "Folder with its weights. Empty: left out, and the card says so.",
    "judge_hps": "HPSv2",
    "judge_hps_info": "Folder with its weights. Empty: left out, and the card says so.",
    "judge_start": "Judge",
    "judge_working": "Judging …",
    "judge_note": (
        "Both models draw the same prompts and seeds. On large models this takes long; the page may be closed, "
        "the card then waits here. While it runs the device is lent to it."
    ),
    "judge_idle": "No report card of this model yet.",
    "judge_idle_hint": (
        "Press Judge: it draws beside its parent, prompt by prompt, and everything found is shown here."
    ),
    "judge_idle_working": "It is being judged: how far that is stands above, and the card appears here.",
    "judge_idle_uncut": (
        "It was not cut, so it has no parent: say above what to compare it with, or choose a cut model in step 1."
    ),
    "judge_failed": "The judging did not finish",
    "judge_stopped": "The judging was stopped. What was drawn is kept; start it again to go on.",
    # the card
    "card_json": "Card as JSON",
    "card_html": "Card as HTML",
    "card_md": "Card as Markdown",
    "card_marks": "▲ better, ▼ worse, ≈ no difference shown, = the same. The line beside it is the interval around 0.",
    "better_higher": "higher is better",
    "better_lower": "lower is better",
    # pairs and frontier
    "pairs_title": "Pairs: the same prompt and seed",
    "pairs_label": "Pairs of pictures",
    "pairs_hint": "Click a pair to lay its pictures over each other.",
    "pairs_none": "No pictures lie with this card.",
    "pairs_gone": "The pictures of this pair are not there any more. Judge the model again.",
    "pairs_side": "Beside it",
    "pair_open": "Compare: {prompt} (seed {seed})",
    "pair_sides": "Left: {left}. Right: {right}. Seed {seed}.",
    "pair_left": "Compared with",
    "pair_right": "This model",
    "pair_slider": "The same prompt and seed: what it is compared with (left) and this model (right)",
    "frontier_heading": "The frontier of all models with a report card",
    "frontier_quality": "Quality",
    "frontier_table": "As a table",
    "frontier_model": "Model",
    "frontier_few": "A frontier needs two models judged against the same parent, with the same prompts and seeds.",
    "frontier_listed": "{name} · {count} against {parent}, {prompts} prompts",
    "frontier_note": "{better}. Dashed: {line}. Lines through the dots are 95 % intervals.",
    "frontier_unbeaten": "On the frontier",
    "frontier_by_size": "by size",
    "frontier_by_time": "by time",
}
