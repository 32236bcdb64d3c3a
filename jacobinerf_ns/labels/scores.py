"""Scores of a run's own labels on the held-out views, where the capture has ground truth: `ns-eval` shows them."""

import torch
from rich.progress import track

from jacobinerf_ns.core import metrics
from jacobinerf_ns.datamanager import FeatureDataManager
from jacobinerf_ns.files.index_maps import VOID_ID
from jacobinerf_ns.labels.truth import read_truth
from jacobinerf_ns.model import JacobiNeRFModel


@torch.no_grad()
def annotated_scores(data: FeatureDataManager, model: JacobiNeRFModel) -> dict[str, float]:
    """Pooled mIoU and accuracy of the labels whose names are classes of the capture; nothing where there are none.

    One confusion matrix over all held-out views: an average of per-view scores, which is what nerfstudio takes of other
    metrics, would reward views without a class. Errors: `UserError` for label maps that cannot be read.
    """
    classes = data.train_dataparser_outputs.metadata.get("classes") or {}
    frames = data.frames("eval")
    snapshot = None if model.label_source is None else model.label_source()
    if snapshot is None or not classes or any(frame.semantics is None for frame in frames):
        return {}
    ids = {name.strip().lower(): identity for identity, name in classes.items()}
    known = [ids.get(label.name.strip().lower(), VOID_ID) for label in snapshot.labels]
    if not any(known):
        return {}
    truth, lookup = read_truth(frames), torch.tensor([VOID_ID, *known])
    count = max(*(int(view.max()) for view in truth), *known) + 1
    confusion = torch.zeros(count, count, dtype=torch.long)
    cameras = data.eval_dataset.cameras
    for i, view in enumerate(track(truth, description="Scoring labels")):
        rays = cameras[i : i + 1].to(model.device).generate_rays(camera_indices=0, keep_shape=True)
        predicted = lookup[model.label_view(rays).decision.labels.cpu()]
        confusion += metrics.confusion_matrix(predicted, view, count, VOID_ID)
    found = metrics.scores(confusion, sorted({identity for identity in known if identity != VOID_ID}))
    return {
        "miou": found.miou,
        "miou_labelled": found.miou_labelled,
        "total_accuracy": found.total_accuracy,
        "class_average_accuracy": found.class_average_accuracy,
    }
