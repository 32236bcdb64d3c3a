"""Labels in 3D: point clouds and meshes."""
