// Classifies pixels in two stages with an export's .tflite files, by LiteRT's CompiledModel.
//
// The app's build file has: implementation("com.google.ai.edge.litert:litert:2.3.0"). The export's folder is among the
// assets, for example as app/src/main/assets/digits.

package org.example.twostage

import android.content.res.AssetManager
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import kotlin.math.exp
import kotlin.math.ln
import org.json.JSONObject

private const val SIGNATURE = "serving_default"

/** When the preview is sure enough to answer alone; manifest.json's rule. */
class ExitRule(private val criterion: String, private val temperature: Double, private val threshold: Double) {
    /** Returns how sure the preview is, from 0 to 1. */
    fun confidence(logits: FloatArray): Double {
        val probabilities = softmax(logits, temperature).sortedDescending()
        if (probabilities.size == 1) return 1.0
        return when (criterion) {
            "margin" -> probabilities[0] - probabilities[1]
            "entropy" -> 1 + probabilities.sumOf { if (it > 0) it * ln(it) else 0.0 } / ln(probabilities.size.toDouble())
            else -> probabilities[0]
        }
    }

    fun exits(logits: FloatArray): Boolean = confidence(logits) >= threshold
}

fun softmax(logits: FloatArray, temperature: Double = 1.0): List<Double> {
    val largest = logits.max()
    val exponentials = logits.map { exp((it - largest) / temperature) }
    val sum = exponentials.sum()
    return exponentials.map { it / sum }
}

/** What the two stages say of an image. */
class Answer(val label: String, val probability: Double, val exitedEarly: Boolean)

/**
 * The preview answers if it is sure enough, else the specialist does. For one thread at a time.
 *
 * folder: the export's folder among the assets; kind: of its files, such as "int8_weights.tflite"; accelerators: the
 * CPU, or GPU and CPU; with a GPU, compare the answers first (docs/guides/phone-code.md).
 */
class TwoStage(
    assets: AssetManager,
    folder: String,
    kind: String = "tflite",
    accelerators: Set<Accelerator> = setOf(Accelerator.CPU),
) : AutoCloseable {
    private val options = CompiledModel.Options(accelerators)
    private val preview = CompiledModel.create(assets, "$folder/preview.$kind", options)
    private val specialist = CompiledModel.create(assets, "$folder/specialist.$kind", options)
    private val image = preview.createInputBuffer("image", SIGNATURE)
    private val previewLogits = preview.createOutputBuffer("logits", SIGNATURE)
    private val coefficients = preview.createOutputBuffer("coefficients", SIGNATURE)
    private val specialistImage = specialist.createInputBuffer("image", SIGNATURE)
    private val specialistCoefficients = specialist.createInputBuffer("coefficients", SIGNATURE)
    private val logits = specialist.createOutputBuffer("logits", SIGNATURE)
    private val classes = text(assets, "$folder/labels.txt").removeSuffix("\n").split("\n")
    private val rule =
        JSONObject(text(assets, "$folder/manifest.json")).getJSONObject("rule").let {
            ExitRule(it.getString("criterion"), it.getDouble("temperature"), it.getDouble("threshold"))
        }

    /** Classifies one image: side * side * channels values from 0 to 255, cropped and resized as manifest.json says. */
    fun classify(pixels: FloatArray): Answer {
        image.writeFloat(pixels)
        preview.run(mapOf("image" to image), mapOf("logits" to previewLogits, "coefficients" to coefficients), SIGNATURE)
        val first = previewLogits.readFloat()
        if (rule.exits(first)) return answer(first, exitedEarly = true)
        specialistImage.writeFloat(pixels)
        specialistCoefficients.writeFloat(coefficients.readFloat())
        specialist.run(
            mapOf("image" to specialistImage, "coefficients" to specialistCoefficients),
            mapOf("logits" to logits),
            SIGNATURE,
        )
        return answer(logits.readFloat(), exitedEarly = false)
    }

    private fun answer(logits: FloatArray, exitedEarly: Boolean): Answer {
        val probabilities = softmax(logits)
        val label = probabilities.indices.maxBy { probabilities[it] }
        return Answer(classes[label], probabilities[label], exitedEarly)
    }

    override fun close() {
        val buffers: List<TensorBuffer> =
            listOf(image, previewLogits, coefficients, specialistImage, specialistCoefficients, logits)
        buffers.forEach { it.close() }
        preview.close()
        specialist.close()
    }
}

private fun text(assets: AssetManager, name: String): String = assets.open(name).bufferedReader().use { it.readText() }
