// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "TextEmbedding",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "TextEmbedding", targets: ["TextEmbedding"])],
    dependencies: [
        .package(url: "https://github.com/huggingface/swift-transformers", from: "1.4.0")
    ],
    targets: [
        .target(
            name: "TextEmbedding",
            dependencies: [.product(name: "Tokenizers", package: "swift-transformers")]
        ),
        .testTarget(name: "TextEmbeddingTests", dependencies: ["TextEmbedding"]),
    ]
)
