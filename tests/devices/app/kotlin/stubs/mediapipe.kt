// com.google.mediapipe:tasks-text: TextEmbedder.java, TextEmbedderResult.java, Embedding.java.
package com.google.mediapipe.tasks.text.textembedder

import android.content.Context

interface Embedding {
    fun floatEmbedding(): FloatArray
}

interface EmbeddingResult {
    fun embeddings(): List<Embedding>
}

interface TextEmbedderResult {
    fun embeddingResult(): EmbeddingResult
}

abstract class TextEmbedder : AutoCloseable {
    abstract fun embed(inputText: String): TextEmbedderResult

    companion object {
        fun createFromFile(context: Context, modelPath: String): TextEmbedder =
            TODO("$context $modelPath")
    }
}
