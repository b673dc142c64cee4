use std::path::Path;

use super::*;

#[tokio::test]
async fn images_of_every_format_have_the_size_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let images = ImageTool::default();
    let size = 3 * 1024 * 1024 + 512;
    for format in [
        ImageFormat::Qcow2,
        ImageFormat::Raw,
        ImageFormat::Vpc,
        ImageFormat::Vhdx,
    ] {
        for fixed in [false, true] {
            let path = dir.path().join(format!("{format}, fixed={fixed}"));
            images
                .create(&NewImage {
                    fixed,
                    ..NewImage::new(&path, format, size)
                })
                .await
                .unwrap();
            let info = images.info_as(&path, Some(format), false).await.unwrap();
            assert_eq!(
                (info.format.as_str(), info.virtual_size),
                (format.as_str(), size)
            );
        }
    }
}

#[tokio::test]
async fn a_failure_carries_what_the_tool_said() {
    let error = ImageTool::default()
        .info_as(Path::new("/no/such/image"), Some(ImageFormat::Qcow2), false)
        .await
        .unwrap_err();
    let Error::Image {
        command, stderr, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert!(command.starts_with("qemu-img info"), "{command}");
    assert!(stderr.contains("No such file"), "{stderr}");
    let error = ImageTool::new("/no/qemu-img")
        .info_as(Path::new("/x"), Some(ImageFormat::Qcow2), false)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
}

#[tokio::test]
async fn no_file_is_ever_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    std::fs::write(&path, "precious").unwrap();
    let images = ImageTool::default();
    let new = NewImage::new(&path, ImageFormat::Qcow2, 1 << 20);
    assert_eq!(
        images.create(&new).await.unwrap_err().kind(),
        crate::ErrorKind::Conflict
    );
    let overlay = images.create_or_reuse_overlay(&new).await.unwrap_err();
    assert_eq!(overlay.kind(), crate::ErrorKind::Conflict);
    let convert = images
        .convert(
            (&path, ImageFormat::Raw),
            (&path, ImageFormat::Qcow2),
            &ConvertOptions::default(),
        )
        .await
        .unwrap_err();
    assert_eq!(convert.kind(), crate::ErrorKind::Conflict);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn growing_works_and_shrinking_must_be_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let images = ImageTool::default();
    images
        .create(&NewImage::new(&path, ImageFormat::Qcow2, 1 << 20))
        .await
        .unwrap();
    images
        .resize(&path, ImageFormat::Qcow2, 2 << 20, false)
        .await
        .unwrap();
    assert!(
        images
            .resize(&path, ImageFormat::Qcow2, 1 << 20, false)
            .await
            .is_err()
    );
    images
        .resize(&path, ImageFormat::Qcow2, 1 << 20, true)
        .await
        .unwrap();
    assert_eq!(
        images
            .info_as(&path, Some(ImageFormat::Qcow2), false)
            .await
            .unwrap()
            .virtual_size,
        1 << 20
    );
}

#[tokio::test]
async fn a_copy_stands_alone_and_compares_equal() {
    let dir = tempfile::tempdir().unwrap();
    let (base, layer, copy) = (
        dir.path().join("base"),
        dir.path().join("layer"),
        dir.path().join("copy"),
    );
    std::fs::write(&base, vec![7_u8; 1 << 20]).unwrap();
    let images = ImageTool::default();
    images
        .create(&NewImage::overlay(
            &layer,
            "base",
            ImageFormat::Raw,
            1 << 20,
        ))
        .await
        .unwrap();
    let (from, to) = (
        (layer.as_path(), ImageFormat::Qcow2),
        (copy.as_path(), ImageFormat::Vhdx),
    );
    images
        .convert(from, to, &ConvertOptions::default())
        .await
        .unwrap();
    assert!(images.same_contents(from, to, false).await.unwrap());
    std::fs::write(&base, vec![8_u8; 1 << 20]).unwrap();
    assert!(!images.same_contents(from, to, false).await.unwrap());
}
