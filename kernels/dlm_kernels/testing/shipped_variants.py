"""Every shipped variant of every kernel."""

from __future__ import annotations

from dlm_kernels.testing import block_attention_variants, plan_and_merge_variants, unmask_variants
from dlm_kernels.testing.shipped_variant import ShippedVariant


def shipped_variants() -> dict[str, dict[str, ShippedVariant]]:
    """Variants by name, by kernel module (`"choose_token.kernel"`).

    Raises:
        ValueError: two variants share a name.
    """
    made = [block_attention_variants.shipped(variant) for variant in block_attention_variants.all_variants()]
    made += [*plan_and_merge_variants.all_plans(), *plan_and_merge_variants.all_merges()]
    made += [unmask_variants.shipped(variant) for variant in unmask_variants.all_variants()]
    by_module: dict[str, dict[str, ShippedVariant]] = {}
    for variant in made:
        named = by_module.setdefault(variant.spec.module, {})
        if variant.name in named:
            raise ValueError(f"two variants of {variant.spec.module} are named {variant.name}")
        named[variant.name] = variant
    return dict(sorted(by_module.items()))
