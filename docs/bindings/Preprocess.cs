// From a picture to the tensor that a model was trained on, as docs/preprocessing.md says, and the way back for maps.
using System;
using System.Collections.Generic;
using System.Linq;
using System.Xml.Linq;

/// <summary>Pixels row by row, `Channels` bytes each.</summary>
public sealed class Picture
{
    public readonly int Height, Width, Channels;
    public readonly byte[] Pixels;

    public Picture(int height, int width, int channels)
    {
        (Height, Width, Channels) = (height, width, channels);
        Pixels = new byte[height * width * channels];
    }

    public int At(int row, int column, int channel) => Pixels[(row * Width + column) * Channels + channel];
}

/// <summary>How a picture lies on the model's input: (height, width) or (top, left).</summary>
public sealed class Geometry
{
    public (int, int) Original, Resized, Offset, Input;
}

public static class Preprocess
{
    private static readonly Dictionary<string, (Func<double, double> Kernel, double Support)> Kernels =
        new Dictionary<string, (Func<double, double>, double)>
        {
            ["area"] = (x => x > -0.5 && x <= 0.5 ? 1 : 0, 0.5),
            ["bilinear"] = (x => Math.Max(1 - Math.Abs(x), 0), 1),
            ["bicubic"] = (Cubic, 2),
            ["lanczos"] = (x => x >= -3 && x < 3 ? Sinc(x) * Sinc(x / 3) : 0, 3),
        };

    /// <summary>The model's input for one RGB picture: its values, their shape, and the way back.</summary>
    public static (float[], int[], Geometry) Apply(Picture picture, XElement spec, string layout)
    {
        var geometry = new Geometry { Original = (picture.Height, picture.Width), Resized = (picture.Height, picture.Width) };
        var now = Recolor(picture, spec.Text("color"));
        if (spec.Get("resize") is XElement resize)
        {
            var size = resize.Get("size").Numbers();
            geometry.Resized = ResizedSize(geometry.Original, resize.Text("mode"), size);
            now = Resize(now, geometry.Resized, resize.Text("interpolation"), resize.Text("antialias") == "true");
            if (resize.Text("mode") == "letterbox")
            {
                var box = Pair(size);
                geometry.Offset = ((box.Item1 - now.Height) / 2, (box.Item2 - now.Width) / 2);
                now = Place(now, box, geometry.Offset, resize.Get("pad_value").Numbers());
            }
        }
        if (spec.Get("crop") is XElement crop)
        {
            var size = Pair(crop.Get("size").Numbers());
            var anchor = crop.Text("anchor");
            var words = anchor.StartsWith("center") ? new[] { anchor, anchor } : anchor.Split('_');
            var moved = (Anchored(now.Height, size.Item1, words[0]), Anchored(now.Width, size.Item2, words[1]));
            now = Place(now, size, moved, new double[] { 0 });
            geometry.Offset = (geometry.Offset.Item1 + moved.Item1, geometry.Offset.Item2 + moved.Item2);
        }
        geometry.Input = (now.Height, now.Width);

        double scale = spec.Get("scale").Number();
        double[] mean = spec.Get("mean").Numbers(), std = spec.Get("std").Numbers();
        int plane = now.Height * now.Width, channels = now.Channels;
        var data = new float[plane * channels];
        for (var i = 0; i < plane; i++)
        {
            for (var c = 0; c < channels; c++)
            {
                var value = (now.Pixels[i * channels + c] * scale - Each(mean, c)) / Each(std, c);
                data[layout == "NCHW" ? c * plane + i : i * channels + c] = (float)value;
            }
        }
        var shape = layout == "NCHW"
            ? new[] { 1, channels, now.Height, now.Width }
            : new[] { 1, now.Height, now.Width, channels };
        return (data, shape, geometry);
    }

    private static Picture Recolor(Picture picture, string color)
    {
        var now = new Picture(picture.Height, picture.Width, color == "L" ? 1 : 3);
        for (var i = 0; i < picture.Height * picture.Width; i++)
        {
            int r = picture.Pixels[3 * i], g = picture.Pixels[3 * i + 1], b = picture.Pixels[3 * i + 2];
            if (color == "L")
            {
                now.Pixels[i] = (byte)(19595 * r + 38470 * g + 7471 * b + 32768 >> 16);
                continue;
            }
            now.Pixels[3 * i] = (byte)(color == "BGR" ? b : r);
            now.Pixels[3 * i + 1] = (byte)g;
            now.Pixels[3 * i + 2] = (byte)(color == "BGR" ? r : b);
        }
        return now;
    }

    private static (int, int) ResizedSize((int Height, int Width) old, string mode, double[] size)
    {
        if (mode == "stretch") return Pair(size);
        if (mode == "shortest" && size.Length == 1)
        {
            int n = (int)size[0], shorter = Math.Min(old.Height, old.Width), longer = Math.Max(old.Height, old.Width);
            longer = Math.Max((int)((double)n * longer / shorter), 1);
            return old.Height <= old.Width ? (n, longer) : (longer, n);
        }
        var (height, width) = Pair(size);
        double down = (double)old.Height / height, across = (double)old.Width / width;
        var ratio = mode == "letterbox" ? Math.Max(down, across) : Math.Min(down, across);
        int rows = (int)Math.Round(old.Height / ratio), columns = (int)Math.Round(old.Width / ratio); // halves to even
        return mode == "letterbox"
            ? (Math.Min(Math.Max(rows, 1), height), Math.Min(Math.Max(columns, 1), width))
            : (Math.Max(rows, height), Math.Max(columns, width));
    }

    /// <summary>Where a picture of size `old` starts on a crop of this size; negative where the crop cuts.</summary>
    private static int Anchored(int old, int size, string anchor)
    {
        if (anchor == "top" || anchor == "left") return 0;
        if (anchor == "bottom" || anchor == "right") return size - old;
        if (size >= old) return (size - old) / 2;
        return anchor == "center_floor" ? -((old - size) / 2) : -(int)Math.Round((old - size) / 2.0);
    }

    /// <summary>The picture laid on a canvas of another size, cut off where it does not fit.</summary>
    private static Picture Place(Picture picture, (int Height, int Width) size, (int Top, int Left) at, double[] pad)
    {
        var canvas = new Picture(size.Height, size.Width, picture.Channels);
        for (var y = 0; y < size.Height; y++)
        {
            for (var x = 0; x < size.Width; x++)
            {
                int fromY = y - at.Top, fromX = x - at.Left;
                var inside = fromY >= 0 && fromY < picture.Height && fromX >= 0 && fromX < picture.Width;
                for (var c = 0; c < picture.Channels; c++)
                {
                    canvas.Pixels[(y * size.Width + x) * picture.Channels + c] = inside
                        ? picture.Pixels[(fromY * picture.Width + fromX) * picture.Channels + c]
                        : (byte)Each(pad, c);
                }
            }
        }
        return canvas;
    }

    private static Picture Resize(Picture picture, (int Height, int Width) size, string interpolation, bool antialias)
    {
        if ((picture.Height, picture.Width).Equals(size)) return picture;
        if (interpolation == "nearest") return Nearest(picture, size);
        if (antialias)
        {
            return Along(Along(picture, true, size.Width, interpolation), false, size.Height, interpolation);
        }
        if (interpolation == "bilinear") return OpenCvLinear(picture, size);
        throw new NotSupportedException($"{interpolation} without antialiasing is OpenCV's own: resize with OpenCvSharp");
    }

    private static Picture Nearest(Picture picture, (int Height, int Width) size)
    {
        var now = new Picture(size.Height, size.Width, picture.Channels);
        for (var y = 0; y < size.Height; y++)
        {
            for (var x = 0; x < size.Width; x++)
            {
                int fromY = (int)((y + 0.5) * picture.Height / size.Height);
                int fromX = (int)((x + 0.5) * picture.Width / size.Width);
                Array.Copy(picture.Pixels, (fromY * picture.Width + fromX) * picture.Channels, now.Pixels,
                    (y * size.Width + x) * picture.Channels, picture.Channels);
            }
        }
        return now;
    }

    /// <summary>Pillow's resampling along one axis: weights of 22 fractional bits, rounded to 8 bits.</summary>
    private static Picture Along(Picture picture, bool wide, int size, string interpolation)
    {
        var old = wide ? picture.Width : picture.Height;
        if (old == size) return picture;
        var now = new Picture(wide ? picture.Height : size, wide ? size : picture.Width, picture.Channels);
        // how far apart neighbours on this axis lie, and how many such lines there are
        var step = wide ? picture.Channels : picture.Width * picture.Channels;
        var lines = wide ? picture.Height : 1;
        var (kernel, support) = Kernels[interpolation];
        double scale = (double)old / size, stretch = Math.Max(scale, 1);
        for (var i = 0; i < size; i++)
        {
            var centre = (i + 0.5) * scale;
            var first = Math.Max((int)(centre - support * stretch + 0.5), 0);
            var stop = Math.Min((int)(centre + support * stretch + 0.5), old);
            var taps = Enumerable.Range(first, stop - first).Select(j => kernel((j - centre + 0.5) / stretch)).ToArray();
            var sum = taps.Sum();
            var weights = taps.Select(tap => (long)(tap / sum * (1 << 22) + Math.Sign(tap) * 0.5)).ToArray();
            for (var line = 0; line < lines; line++)
            {
                for (var k = 0; k < step; k++)
                {
                    var total = 1L << 21;
                    for (var j = 0; j < weights.Length; j++)
                    {
                        total += weights[j] * picture.Pixels[(line * old + first + j) * step + k];
                    }
                    now.Pixels[(line * size + i) * step + k] = (byte)Math.Min(Math.Max(total >> 22, 0), 255);
                }
            }
        }
        return now;
    }

    /// <summary>OpenCV's INTER_LINEAR on 8 bits: weights of 11 fractional bits; halving both axes averages.</summary>
    private static Picture OpenCvLinear(Picture picture, (int Height, int Width) size)
    {
        var now = new Picture(size.Height, size.Width, picture.Channels);
        var halved = picture.Height == 2 * size.Height && picture.Width == 2 * size.Width;
        for (var y = 0; y < size.Height; y++)
        {
            var (top, bottom, above, below) = Neighbours(y, picture.Height, size.Height);
            for (var x = 0; x < size.Width; x++)
            {
                var (left, right, before, after) = Neighbours(x, picture.Width, size.Width);
                for (var c = 0; c < picture.Channels; c++)
                {
                    var upper = picture.At(top, left, c) * before + picture.At(top, right, c) * after;
                    var lower = picture.At(bottom, left, c) * before + picture.At(bottom, right, c) * after;
                    var value = halved
                        ? picture.At(2 * y, 2 * x, c) + picture.At(2 * y, 2 * x + 1, c)
                            + picture.At(2 * y + 1, 2 * x, c) + picture.At(2 * y + 1, 2 * x + 1, c) + 2 >> 2
                        : (above * (upper >> 4) >> 16) + (below * (lower >> 4) >> 16) + 2 >> 2;
                    now.Pixels[(y * size.Width + x) * picture.Channels + c] = (byte)value;
                }
            }
        }
        return now;
    }

    private static (int, int, int, int) Neighbours(int index, int old, int size)
    {
        var position = (float)((index + 0.5) * old / size - 0.5);
        var low = (int)Math.Floor(position);
        var part = position - low;
        int start = Math.Max(low, 0), stop = Math.Min(low + 1, old - 1);
        return (start, stop, (int)Math.Round((1 - part) * 2048), (int)Math.Round(part * 2048));
    }

    private static double Cubic(double x)
    {
        double a = -0.5, t = Math.Abs(x);
        if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
        return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
    }

    private static double Sinc(double x) => x == 0 ? 1 : Math.Sin(Math.PI * x) / (Math.PI * x);

    private static double Each(double[] values, int channel) => values[channel % values.Length];

    private static (int, int) Pair(double[] size) => ((int)size[0], (int)size[size.Length - 1]);
}

public static class Maps
{
    /// <summary>Subtract the minimum, divide by the maximum plus 1e-7, as pytorch-grad-cam does.</summary>
    public static float[] MinMax(float[] map)
    {
        var low = map.Min();
        var high = map.Max() - low;
        return map.Select(value => (value - low) / (1e-7f + high)).ToArray();
    }

    /// <summary>A map resized: bilinear, half-pixel centres.</summary>
    public static float[] Resize(float[] map, (int, int) size, (int, int) to) =>
        ToPicture(map, new Geometry { Original = to, Resized = size, Input = size });

    /// <summary>A map at the input's resolution on the original picture: 0 outside a crop, padding left out.</summary>
    public static float[] ToPicture(float[] map, Geometry geometry)
    {
        var (height, width) = geometry.Original;
        var rows = Samples(height, geometry.Resized.Item1, geometry.Offset.Item1, geometry.Input.Item1);
        var columns = Samples(width, geometry.Resized.Item2, geometry.Offset.Item2, geometry.Input.Item2);
        var wide = geometry.Input.Item2;
        var result = new float[height * width];
        for (var y = 0; y < height; y++)
        {
            for (var x = 0; x < width; x++)
            {
                if (rows[y] == null || columns[x] == null) continue;
                Sample row = rows[y].Value, column = columns[x].Value;
                int top = row.Low * wide, bottom = row.High * wide;
                var upper = map[top + column.Low] * (1 - column.Part) + map[top + column.High] * column.Part;
                var lower = map[bottom + column.Low] * (1 - column.Part) + map[bottom + column.High] * column.Part;
                result[y * width + x] = (float)(upper * (1 - row.Part) + lower * row.Part);
            }
        }
        return result;
    }

    private static Sample?[] Samples(int picture, int resized, int offset, int input)
    {
        int start = Math.Max(offset, 0), stop = Math.Min(offset + resized, input);
        return Enumerable.Range(0, picture).Select(i =>
        {
            var centre = (i + 0.5) * resized / picture + offset;
            if (centre < start || centre >= stop) return (Sample?)null;
            var position = Math.Min(Math.Max(centre - 0.5, start), stop - 1);
            var low = (int)Math.Floor(position);
            return new Sample { Low = low, High = Math.Min(low + 1, stop - 1), Part = position - low };
        }).ToArray();
    }

    /// <summary>Two neighbours on one axis, and how much of the second.</summary>
    private struct Sample
    {
        public int Low, High;
        public double Part;
    }
}
