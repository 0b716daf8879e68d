"""Who runs this step: pure decisions over integers. Reading order: plan, request, scheduler."""
